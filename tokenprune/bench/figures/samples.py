"""Pictures of several prompts, by the plain model above and by CAT below (the paper's Fig. 1)."""

from __future__ import annotations

from textwrap import fill
from typing import Any

from tokenprune.bench.figures.canvas import Plot, decibels, new_figure, rounded, show
from tokenprune.bench.figures.runs import Runs
from tokenprune.embedded import scenes
from tokenprune.policies import CATPolicy

CAPTIONS = 5
"""Of the held-out split, after the prompt of the settings."""


LINE = 27
"""Letters of a prompt in a line above its picture."""


def draw(runs: Runs) -> Plot:
    """Each prompt from the same noise by both; below, how near CAT's picture is to the plain model's."""
    settings = runs.settings
    policy = CATPolicy(settings.alpha, settings.warmup_steps)
    prompts = [settings.prompt, *scenes.texts("held-out", CAPTIONS)]
    figure = new_figure(2.1 * len(prompts), 5.4, "")
    axes = figure.subplots(2, len(prompts), squeeze=False)
    numbers: dict[str, Any] = {}
    for prompt, above, below in zip(prompts, *axes, strict=True):
        drawn = runs.draw(policy, prompt=prompt)
        numbers[prompt] = rounded(runs.psnr(drawn), 1)
        show(above, runs.dense_of(prompt).picture, fill(prompt, LINE))
        show(below, drawn.picture, decibels(runs.psnr(drawn)))
    report = runs.draw(policy).report
    share = f"{report.mac_ratio:.0%} of the plain model's MACs"
    figure.suptitle(f"The plain model above; CAT below, with {share}: alpha {settings.alpha:g}, {settings.steps} steps")
    found = [psnr for psnr in numbers.values() if psnr is not None]
    spread = f"{min(found)} to {max(found)} dB" if found else decibels(None)
    return Plot(
        figure,
        {"psnr": numbers, "tokens_ratio": rounded(report.tokens_ratio), "mac_ratio": rounded(report.mac_ratio)},
        f"{len(prompts)} prompts, {spread} from the plain model's pictures, with {share}",
    )
