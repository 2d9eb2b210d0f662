"""Counting multiply-accumulate operations of calls, on torch's meta device where that is possible.

counting.py counts one call, full or pruned; rehearsal.py a whole generation by its plan, layer by layer. Imports the
engine and all below it. Start with `counting.py`.
"""

from tokenprune.macs.counting import count_layers, count_steps, with_a_whole_block

__all__ = ["count_layers", "count_steps", "with_a_whole_block"]
