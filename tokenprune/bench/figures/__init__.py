"""The CAT Pruning paper's figures (arXiv 2502.00433), drawn from traces of a pipeline, and one of any trace.

A figure is a function `draw` from `Runs` to a `Plot`, in a file of its own; `draw` here is of a `Trace`. What draws
them is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenprune.bench.figures.canvas import Plot
    from tokenprune.bench.figures.runs import Runs
    from tokenprune.bench.measuring.fidelity import Picture
    from tokenprune.reports.trace import Trace

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


def draw(trace: Trace, picture: Picture | None = None, image: int = 0, title: str = "") -> Plot:
    """A figure of any trace: `one_trace.draw`, with its arguments and errors. Needs matplotlib.

    from tokenprune.bench import figures

    figures.draw(handle.trace, picture).figure.savefig("trace.png")
    """
    from tokenprune.bench.figures.one_trace import draw as draw_one

    return draw_one(trace, picture, image, title)
