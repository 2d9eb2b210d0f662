"""Module maps of models that nobody wrote an adapter for: watch, infer, check.

watch.py records calls of a model; arguments.py, parts.py, exits.py, tokengrid.py and texts.py tell from the records
what is what; verify.py tries the map; code.py prints it as an adapter; pending.py stands in for the pruned model until
its first call. Imports the engine and all below it. Start with `discover.py`.
"""

from tokenprune.discovery.arguments import AxesGrid, OneRow, PositionsGrid, ReferencesAfter
from tokenprune.discovery.discover import Discovery, discover
from tokenprune.discovery.pending import PendingModule
from tokenprune.registry import may_be_discovered

__all__ = [
    "AxesGrid",
    "Discovery",
    "OneRow",
    "PendingModule",
    "PositionsGrid",
    "ReferencesAfter",
    "discover",
    "may_be_discovered",
]
