"""The CAT Pruning paper's figures (arXiv 2502.00433), drawn from traces of a pipeline; one file each.

A figure is a function `draw` from `Runs` to a `Plot`. What draws them is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenprune.bench.figures.canvas import Plot
    from tokenprune.bench.figures.runs import Runs

FIGURES = {
    "samples": "samples",
    "noise": "noise",
    "tokens": "tokens",
    "clusters": "clusters",
    "strategies": "strategies",
    "alpha": "alphas",
    "ages": "ages",
}
"""The module of each figure."""


def find_figure(name: str) -> Callable[[Runs], Plot]:
    """What draws the figure of that name."""
    draw: Callable[[Runs], Plot] = import_module(f"{__name__}.{FIGURES[name]}").draw
    return draw
