"""Handles of pruned models and pipelines: what users hold, and how they find it again.

`part.py` is one pruned transformer and what it reports; `joint.py` puts the reports of several together; `lookup.py`
finds the handle of a model. Imports the engine, macs, and all below them. Start with `handle.py`.
"""

from tokenprune.handles.handle import Handle
from tokenprune.handles.lookup import handle_of, remove
from tokenprune.handles.part import Part, PrunedModel

__all__ = ["Handle", "Part", "PrunedModel", "handle_of", "remove"]
