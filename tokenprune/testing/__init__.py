"""Checks for one's own policies and adapters: `check_policy`, `check_adapter`, `no_waiting`.

Imports the engine and all below it. Start with `policy.py`.
"""

from tokenprune.testing.adapter import AdapterCheckError, AdapterProperty, check_adapter
from tokenprune.testing.policy import GRIDS, PolicyCheckError, Property, check_policy
from tokenprune.testing.waiting import WaitedError, no_waiting

__all__ = [
    "GRIDS",
    "AdapterCheckError",
    "AdapterProperty",
    "PolicyCheckError",
    "Property",
    "WaitedError",
    "check_adapter",
    "check_policy",
    "no_waiting",
]
