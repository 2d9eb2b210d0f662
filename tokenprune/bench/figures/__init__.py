"""The CAT Pruning paper's figures (arXiv 2502.00433), drawn from traces of a pipeline; one file each.

Needs the extra `cli`. A figure is a function from `Runs` to a `Plot`.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenprune.bench.figures import ages, alphas, clusters, noise, strategies, tokens
from tokenprune.bench.figures.canvas import Plot
from tokenprune.bench.figures.runs import Runs

FIGURES: dict[str, Callable[[Runs], Plot]] = {
    "noise": noise.draw,
    "tokens": tokens.draw,
    "clusters": clusters.draw,
    "strategies": strategies.draw,
    "alpha": alphas.draw,
    "ages": ages.draw,
}
