"""How old the predictions are that the sampler gets, by strategy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tokenprune.bench.figures.canvas import BLUE, ORANGE, Plot, new_figure, plain_axes, rounded
from tokenprune.bench.figures.runs import Runs
from tokenprune.bench.figures.strategies import strategies

SHOWN = ("noise", "noise and staleness", "consecutive rows", "random", "CAT", "error-controlled")
PER_ROW = 3


def draw(runs: Runs) -> Plot:
    """Histograms over all tokens at all pruned steps; 0 is computed at the step itself."""
    settings = runs.settings
    names, policies = (*SHOWN, *runs.own), strategies(runs)
    rows = -(-len(names) // PER_ROW)
    figure = new_figure(
        12,
        2.7 * rows,
        f"Age of the tokens' predictions at pruned steps, alpha {settings.alpha:g}, {settings.steps} steps",
    )
    axes = figure.subplots(rows, PER_ROW, sharex=True, sharey=True)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    numbers: dict[str, Any] = {}
    oldest = settings.steps - settings.warmup_steps
    for name, axis in zip(names, axes.flat, strict=False):
        drawn = runs.draw(policies[name])
        steps = drawn.trace.steps[settings.warmup_steps :]
        ages = torch.stack([step.staleness[0] for step in steps]).flatten().numpy()
        shares = np.bincount(ages, minlength=oldest + 1) / len(ages)
        numbers[name] = {
            "mean": rounded(float(ages.mean()), 2),
            "p95": rounded(float(np.quantile(ages, 0.95)), 1),
            "max": int(ages.max()),
            "shares": [rounded(share, 4) for share in shares],
        }
        axis.bar(range(oldest + 1), shares, width=0.85, color=BLUE)
        axis.axvline(ages.mean(), color=ORANGE, linewidth=1.2)
        axis.set_yscale("log")
        axis.set_ylim(2e-4, 1)
        found = numbers[name]
        plain_axes(
            axis, f"{name}: mean {found['mean']:.1f}, 95 % up to {found['p95']:.0f}, oldest {found['max']}", "", ""
        )
    figure.supxlabel("steps since the token was computed (line: mean)", fontsize=9)
    figure.supylabel("share of tokens", fontsize=9)
    summary = "mean and oldest: " + ", ".join(
        f"{name} {found['mean']:.1f}, {found['max']}" for name, found in numbers.items()
    )
    return Plot(figure, numbers, summary)
