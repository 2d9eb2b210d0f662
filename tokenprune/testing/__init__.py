"""Checks for one's own policies and adapters."""

from tokenprune.testing.adapter import AdapterCheckError, AdapterProperty, check_adapter
from tokenprune.testing.policy import GRIDS, PolicyCheckError, Property, check_policy

__all__ = [
    "GRIDS",
    "AdapterCheckError",
    "AdapterProperty",
    "PolicyCheckError",
    "Property",
    "check_adapter",
    "check_policy",
]
