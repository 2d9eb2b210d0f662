"""Strategies of choosing the tokens, side by side (the paper's Fig. 6)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.colors import PowerNorm

from tokenprune.bench.configurations.suites import described
from tokenprune.bench.figures.canvas import Plot, colour_bar, decibels, difference, new_figure, rounded, show
from tokenprune.bench.figures.runs import Runs
from tokenprune.policies.base import SelectionPolicy

STRATEGIES: dict[str, Callable[..., SelectionPolicy]] = {
    variant.name: partial(variant.make, policy) for policy, variant in described()
}
"""By name, what makes each of alpha and warm-up steps: all that the policies say of themselves."""


PER_ROW = 7


def draw(runs: Runs) -> Plot:
    """Pictures above, their differences to the plain model's below."""
    settings, dense = runs.settings, runs.dense
    pictures = {"plain": dense}
    for name, policy in STRATEGIES.items():
        pictures[name] = runs.draw(policy(alpha=settings.alpha, warmup_steps=settings.warmup_steps))
    fewer, steps = runs.fewer_steps(pictures["CAT"])
    pictures[f"plain, {steps} steps"] = fewer
    bands = -(-len(pictures) // PER_ROW)
    figure = new_figure(
        2.1 * PER_ROW, 4.35 * bands, f"{settings.prompt}; {settings.steps} steps, alpha {settings.alpha:g}", dpi=70
    )
    axes = figure.subplots(2 * bands, PER_ROW, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    differences = {name: difference(drawn.picture, dense.picture) for name, drawn in pictures.items()}
    largest = max(1.0, *(float(found.max()) for found in differences.values()))
    numbers: dict[str, Any] = {}
    shown = None
    for place, (name, drawn) in enumerate(pictures.items()):
        band, column = divmod(place, PER_ROW)
        above, below = axes[2 * band, column], axes[2 * band + 1, column]
        psnr = runs.psnr(drawn)
        show(above, drawn.picture, name if drawn is dense else f"{name}\n{decibels(psnr)}")
        if drawn is not dense:
            shown = show(below, differences[name], cmap="magma", norm=PowerNorm(0.5, 0, largest))
            share = float(drawn.trace.computed.sum() / dense.trace.computed.sum())
            numbers[name] = {"psnr": rounded(psnr, 1), "tokens_ratio": rounded(share)}
    colour_bar(figure, shown, axes, "absolute difference to the plain model, of 255")
    best = sorted(numbers, key=lambda name: -(numbers[name]["psnr"] or float("inf")))
    summary = "PSNR: " + ", ".join(f"{name} {decibels(numbers[name]['psnr'])}" for name in best)
    return Plot(figure, numbers, summary)
