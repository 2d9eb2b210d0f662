"""Pictures of more and more tokens (the paper's Figs. 8 and 9)."""

from __future__ import annotations

from typing import Any

from matplotlib.colors import PowerNorm

from tokenprune.bench.figures.canvas import (
    BLUE,
    ORANGE,
    Plot,
    colour_bar,
    decibels,
    difference,
    new_figure,
    plain_axes,
    rounded,
    show,
)
from tokenprune.bench.figures.runs import Runs
from tokenprune.policies import CATPolicy

ALPHAS = (0.2, 0.3, 0.5, 0.8, 1.0)


def draw(runs: Runs) -> Plot:
    """CAT at the paper's values of alpha, and the plain model in as many steps as cost the same."""
    settings, dense = runs.settings, runs.dense
    figure = new_figure(15.5, 4.5, f"CAT with more and more tokens: {settings.prompt}")
    pictures, curve = figure.subfigures(1, 2, width_ratios=[len(ALPHAS) * 2, 4.2])
    axes = pictures.subplots(2, len(ALPHAS))
    drawn = {alpha: runs.draw(CATPolicy(alpha, settings.warmup_steps)) for alpha in ALPHAS}
    differences = {alpha: difference(found.picture, dense.picture) for alpha, found in drawn.items()}
    largest = max(1.0, *(float(found.max()) for found in differences.values()))
    numbers: dict[str, Any] = {}
    for alpha, above, below in zip(ALPHAS, *axes, strict=True):
        found, report = drawn[alpha], drawn[alpha].report
        plain, steps = runs.fewer_steps(found)
        numbers[str(alpha)] = {
            "psnr": rounded(runs.psnr(found), 1),
            "tokens_ratio": rounded(report.tokens_ratio),
            "mac_ratio": rounded(report.mac_ratio),
            "plain_steps": steps,
            "plain_psnr": rounded(runs.psnr(plain), 1),
        }
        show(above, found.picture, f"alpha {alpha}\n{decibels(runs.psnr(found))}, {report.mac_ratio:.0%} of MACs")
        shown = show(below, differences[alpha], cmap="magma", norm=PowerNorm(0.5, 0, largest))
    colour_bar(pictures, shown, axes, "absolute difference, of 255")
    _curve(curve.subplots(), numbers, settings.steps)
    summary = ", ".join(f"alpha {alpha}: {decibels(found['psnr'])}" for alpha, found in numbers.items())
    return Plot(figure, numbers, summary)


def _curve(axis: Any, numbers: dict[str, Any], steps: int) -> None:
    lines = (
        ("CAT", BLUE, [(found["mac_ratio"], found["psnr"]) for found in numbers.values()]),
        (
            "plain model, fewer steps",
            ORANGE,
            [(found["plain_steps"] / steps, found["plain_psnr"]) for found in numbers.values()],
        ),
    )
    for name, colour, points in lines:
        known = [point for point in points if point[1] is not None]
        axis.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=4, label=name)
    axis.legend(fontsize=8, frameon=False)
    plain_axes(axis, "", "share of the plain model's MACs", "PSNR to the plain model (dB)")
