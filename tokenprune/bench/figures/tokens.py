"""The selected tokens over the picture, step by step (the paper's Figs. 4 and 5)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenprune.bench.figures.canvas import Plot, decibels, faded, new_figure, over_pixels, rounded, show
from tokenprune.bench.figures.runs import Runs, Samples
from tokenprune.bench.figures.strategies import strategies

ROWS = ("noise", "noise and staleness", "CAT")


IN_A_ROW = 4


FADE = 0.65


def draw(runs: Runs) -> Plot:
    """Every strategy's own picture, with the tokens in colour that a step computes."""
    settings = runs.settings
    pruned = range(settings.warmup_steps, settings.steps)
    shown = sorted({*pruned[:IN_A_ROW], pruned[len(pruned) // 2], pruned[-1]})
    rows = (*ROWS, *runs.own)
    policies = strategies(runs)
    figure = new_figure(
        1.95 * (len(shown) + 1), 0.2 + 2 * len(rows), f"Tokens computed at a step, alpha {settings.alpha:g}"
    )
    axes = figure.subplots(len(rows), len(shown) + 1, squeeze=False)
    numbers: dict[str, Any] = {"steps_shown": shown}
    for name, (first, *rest) in zip(rows, axes, strict=True):
        drawn = runs.draw(policies[name])
        computed = drawn.trace.computed[settings.warmup_steps :, 0]
        never = float((computed.sum(0) == 0).float().mean())
        numbers[name] = {
            "psnr": rounded(runs.psnr(drawn), 1),
            "never_computed": rounded(never),
            "computed_at_every_pruned_step": rounded(float(computed.all(0).float().mean())),
        }
        show(first, drawn.picture, "final picture" if name == ROWS[0] else "")
        first.set_ylabel(f"{name}\n{decibels(runs.psnr(drawn))}", fontsize=9)
        for axis, step in zip(rest, shown, strict=True):
            show(axis, _marked(drawn, step), f"step {step}" if name == ROWS[0] else "")
    summary = "never computed after the warm-up: " + ", ".join(
        f"{name} {numbers[name]['never_computed']:.0%}" for name in rows
    )
    return Plot(figure, numbers, summary)


def _marked(drawn: Samples, step: int) -> Any:
    trace = drawn.trace
    chosen = over_pixels(trace.computed[step, 0], trace.grid, drawn.picture)
    return np.where(chosen[..., None], drawn.picture, faded(drawn.picture, FADE))
