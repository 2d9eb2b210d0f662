"""The clusters that tokens are selected by, over the picture (the paper's Fig. 7)."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.bench.figures.canvas import INK, Plot, faded, new_figure, over_pixels, rounded, show
from tokenprune.bench.figures.runs import Runs, Samples
from tokenprune.ops.grid import TokenGrid, neighbour_edges
from tokenprune.policies import CATPolicy

MIX = 0.6


def draw(runs: Runs) -> Plot:
    """The clusters of each variant of CAT."""
    settings = runs.settings
    policies = {
        variant.name: variant.make(CATPolicy, alpha=settings.alpha, warmup_steps=settings.warmup_steps)
        for variant in CATPolicy.description.variants
    }
    without = [name for name, policy in runs.own.items() if not runs.draw(policy).trace.steps[-1].labels]
    policies |= {name: policy for name, policy in runs.own.items() if name not in without}
    figure = new_figure(
        2.5 + 3 * (len(policies) + 1), 4.2, f"Clusters of tokens, found once at step {settings.warmup_steps}"
    )
    first, *axes = figure.subplots(1, len(policies) + 1)
    show(first, runs.dense.picture, "plain model")
    numbers: dict[str, Any] = {}
    for (name, policy), axis in zip(policies.items(), axes, strict=True):
        drawn = runs.draw(policy)
        labels = next(iter(drawn.trace.steps[-1].labels.values()))[0]
        sizes = labels.bincount()
        sizes = sizes[sizes > 0].sort().values
        together = neighbours_together(labels, drawn.trace.grid)
        numbers[name] = {"sizes": sizes.tolist(), "neighbours_together": rounded(together)}
        show(axis, _map(drawn, labels), f"{name}: {len(sizes)} clusters of {sizes[0]} to {sizes[-1]} tokens")
        _outline(axis, over_pixels(labels, drawn.trace.grid, drawn.picture))
    summary = "neighbours in one cluster: " + ", ".join(
        f"{name} {found['neighbours_together']:.0%}" for name, found in numbers.items()
    )
    return Plot(figure, numbers, "; ".join([summary, *(f"{name} keeps none" for name in without)]))


def neighbours_together(labels: Tensor, grid: TokenGrid) -> float:
    """Share of pairs of neighbouring tokens with the same label [N]."""
    source, target = neighbour_edges(grid, labels.device)
    return float((labels[source] == labels[target]).float().mean())


def _map(drawn: Samples, labels: Tensor) -> NDArray[np.float64]:
    """Colours over the faded picture [S, S, 3]; clusters are numbered in the order of their first token."""
    _, first = np.unique(labels.numpy(), return_index=True)
    order = torch.from_numpy(labels.numpy()[np.sort(first)])
    places = torch.empty(int(labels.max()) + 1, dtype=torch.int64)
    places[order] = torch.arange(len(order))
    colours = mpl.colormaps["tab20"](np.arange(20))[:, :3]
    tokens = over_pixels(places[labels], drawn.trace.grid, drawn.picture) % len(colours)
    return MIX * colours[tokens] + (1 - MIX) * faded(drawn.picture, 0) / 255


def _outline(axis: Any, labels: NDArray[Any]) -> None:
    """Lines where the label changes [S, S]."""
    height, width = labels.shape
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    style = {"colors": INK, "linewidths": 0.7}
    for y, x in zip(*down.nonzero(), strict=True):
        axis.hlines(y + 0.5, x - 0.5, x + 0.5, **style)
    for y, x in zip(*right.nonzero(), strict=True):
        axis.vlines(x + 0.5, y - 0.5, y + 0.5, **style)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
