"""A schedule, a policy and a reuse rule as one object: made, recommended, and kept in files.

plan.py is the object, presets.py has the recommended ones, files.py loads and saves them, data.py turns settings into
plain data and back, formats.py reads and writes JSON, TOML and YAML. Imports policies, reuse, schedule, ops, errors.
Start with `plan.py`.
"""

from tokenprune.plans.files import load_plan, save_plan
from tokenprune.plans.plan import Plan

__all__ = ["Plan", "load_plan", "save_plan"]
