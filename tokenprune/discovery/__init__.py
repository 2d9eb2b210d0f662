"""Module maps of models that nobody wrote an adapter for: watch, infer, check."""

from tokenprune.discovery.arguments import AxesGrid, PositionsGrid, ReferencesAfter
from tokenprune.discovery.discover import Discovery, discover
from tokenprune.discovery.pending import PendingModule
from tokenprune.registry import may_be_discovered

__all__ = [
    "AxesGrid",
    "Discovery",
    "PendingModule",
    "PositionsGrid",
    "ReferencesAfter",
    "discover",
    "may_be_discovered",
]
