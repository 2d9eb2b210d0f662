"""Checks for one's own policies and adapters: `check_policy`, `check_adapter`, `no_waiting`; each tells what it saw.

Imports the engine and all below it. Start with `policy.py`.
"""

from tokenprune.reports.checks import CheckResult, Finding
from tokenprune.testing.adapter import AdapterCheckError, AdapterProperty, check_adapter
from tokenprune.testing.player import PolicyCheckError, Property
from tokenprune.testing.policy import GRIDS, check_policy
from tokenprune.testing.waiting import WaitedError, no_waiting

__all__ = [
    "GRIDS",
    "AdapterCheckError",
    "AdapterProperty",
    "CheckResult",
    "Finding",
    "PolicyCheckError",
    "Property",
    "WaitedError",
    "check_adapter",
    "check_policy",
    "no_waiting",
]
