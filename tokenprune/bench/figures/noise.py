"""Relative noise at a step against that at the step before (the paper's Figs. 2 and 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenprune.bench.figures.canvas import BLUE, GREY, ORANGE, Plot, new_figure, plain_axes, rounded, whole_numbers
from tokenprune.bench.figures.runs import Runs
from tokenprune.reports.trace import Trace


def draw(runs: Runs) -> Plot:
    """Three steps of the plain model token by token, and Pearson's r at all steps."""
    settings, trace = runs.settings, runs.dense.trace
    reference = max(0, settings.warmup_steps - 2)
    noise = trace.relative_noise_to(reference)[:, 0].numpy()
    relative = pearson(noise, reference + 2)
    changes = pearson(_changes(trace), reference + 2)
    shown = sorted({min(relative), (min(relative) + max(relative)) // 2, max(relative)})

    figure = new_figure(
        13.5, 3.7, "Relative noise of the tokens at a step against that at the step before, plain model"
    )
    *scatters, lines = figure.subplots(1, len(shown) + 1, width_ratios=[1] * len(shown) + [1.5])
    for step, axis in zip(shown, scatters, strict=True):
        before, now = noise[step - 1], noise[step]
        limit = 1.05 * max(before.max(), now.max())
        axis.plot([0, limit], [0, limit], color=GREY, linewidth=0.8, zorder=0)
        axis.scatter(before, now, s=9, color=BLUE, alpha=0.55, linewidths=0)
        axis.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
        name = r"$\|n_{%d} - n_{%d}\|$"
        plain_axes(axis, f"steps {step} and {step - 1}: r = {relative[step]:.3f}", name % (step - 1, reference), "")
        axis.set_ylabel(name % (step, reference), fontsize=9)
    lines.plot(list(relative), list(relative.values()), color=BLUE, marker="o", markersize=3, label="relative noise")
    lines.plot(
        list(changes), list(changes.values()), color=ORANGE, marker="o", markersize=3, label="change since last step"
    )
    lines.set_ylim(min(0.0, *changes.values()), 1.02)
    whole_numbers(lines)
    lines.legend(fontsize=8, frameon=False, loc="lower right")
    plain_axes(lines, "Pearson's r to the step before", "step i", "r")

    numbers = {
        "reference_step": reference,
        "r_relative_noise": {str(step): rounded(r) for step, r in relative.items()},
        "r_change": {str(step): rounded(r) for step, r in changes.items()},
        "r_relative_noise_mean": rounded(float(np.mean(list(relative.values())))),
        "r_change_mean": rounded(float(np.mean(list(changes.values())))),
    }
    low, high = min(relative.values()), max(relative.values())
    summary = (
        f"r of relative noise {low:.3f} to {high:.3f}; of the change since the last step "
        f"{min(changes.values()):.3f} to {max(changes.values()):.3f}"
    )
    return Plot(figure, numbers, summary)


def pearson(values: NDArray[np.float32], first: int) -> dict[int, float]:
    """Pearson's r between the values of all tokens [S, N] at a step and at the one before, from step `first` on."""
    return {step: float(np.corrcoef(values[step], values[step - 1])[0, 1]) for step in range(first, len(values))}


def _changes(trace: Trace) -> NDArray[np.float32]:
    """||n_i - n_(i-1)|| of the first image's tokens [S, N]; 0 at the first step."""
    return np.stack([step.relative_noise[0].numpy() for step in trace.steps])
