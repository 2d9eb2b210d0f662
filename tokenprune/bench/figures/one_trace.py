"""Any trace as a figure: which tokens were computed when, how often, and how old the others were."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.bench.figures.canvas import (
    BLUE,
    GREY,
    ORANGE,
    Plot,
    faded,
    new_figure,
    over_pixels,
    plain_axes,
    rounded,
    show,
    whole_numbers,
)
from tokenprune.bench.measuring.fidelity import Picture
from tokenprune.errors import TraceError
from tokenprune.reports.trace import Trace, TraceStep
from tokenprune.reports.viewer.tokens import Layout

PANELS = 6
FADE = 0.65


def draw(trace: Trace, picture: Picture | None = None, image: int = 0, title: str = "") -> Plot:
    """The tokens of some steps, how often each was computed, ages of predictions, tokens and seconds of all steps.

    Args:
        trace: of any policy, model and grid; of a video the middle frame is shown, tokens without a grid in rows.
        picture: what was drawn [height, width, 3], bytes, whose extents are multiples of the grid's; it is shown under
            the tokens. None, and any video, shows the tokens alone.
        image: which of the batch.
        title: above all.

    Raises:
        TraceError: the trace has no steps.
        ValueError: it has no such image, or the picture does not fit its grid.
    """
    if not trace.steps:
        raise TraceError("trace: expected one with steps, got none; draw a picture before")
    images = len(trace.steps[0].computed)
    if not 0 <= image < images:
        raise ValueError(f"image: expected one of 0 to {images - 1}, got {image}")
    shown = _some(trace)
    figure = new_figure(1.9 * PANELS, 5, title or f"{len(trace.steps)} steps, {len(trace.steps[0].computed[0])} tokens")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    axes = above.subplots(1, PANELS, squeeze=False)[0]
    for axis in axes:
        axis.set_axis_off()
    for axis, step in zip(axes, shown, strict=False):
        mask = step.computed[image]
        show(
            axis,
            _over(mask, trace, picture),
            f"step {step.report.step}: {int(mask.sum())}",
            vmin=0,
            vmax=1,
            cmap="Blues",
        )
    counts = trace.computed[:, image].sum(0)
    often, ages, tokens, seconds = below.subplots(1, 4)
    bar = show(often, _cells(counts, trace), "steps that computed it", vmin=0, vmax=len(trace.steps), cmap="viridis")
    below.colorbar(bar, ax=often, fraction=0.046).ax.tick_params(labelsize=8)
    old = torch.stack([step.staleness[image] for step in trace.steps if not step.report.full] or [torch.zeros(0)])
    if old.numel():
        shares = np.bincount(old.flatten().int().numpy()) / old.numel()
        ages.bar(range(len(shares)), shares, width=0.85, color=BLUE)
        whole_numbers(ages)
        plain_axes(ages, "age of predictions, pruned steps", "steps", "share of tokens")
    else:
        show(ages, np.full((1, 1), np.nan), "no step was pruned")
    rows = [step.report for step in trace.steps]
    colours = [BLUE if row.full else ORANGE if row.tokens else GREY for row in rows]
    for axis, name, values in (
        (tokens, "tokens (blue: full step)", [row.tokens for row in rows]),
        (seconds, "seconds", [row.seconds for row in rows]),
    ):
        axis.bar([row.step for row in rows], values, width=0.85, color=colours)
        whole_numbers(axis)
        plain_axes(axis, name, "step", "")
    share = sum(row.tokens for row in rows) / sum(row.num_tokens for row in rows)
    mean, oldest = (rounded(float(old.float().mean()), 2), int(old.max())) if old.numel() else (None, 0)
    numbers = {
        "steps_shown": [step.report.step for step in shown],
        "tokens_ratio": rounded(share),
        "never_computed": rounded(float((counts == 0).float().mean())),
        "mean_age": mean,
        "oldest": oldest,
    }
    summary = f"{share:.0%} of the tokens" + ("" if mean is None else f"; ages {mean:.1f} on average, {oldest} at most")
    return Plot(figure, numbers, summary)


def _some(trace: Trace) -> list[TraceStep]:
    """Some of the pruned steps, from the first to the last; of all steps where none is pruned."""
    steps = [step for step in trace.steps if not step.report.full] or list(trace.steps)
    places = np.linspace(0, len(steps) - 1, PANELS).round().astype(int)
    return [steps[place] for place in dict.fromkeys(places.tolist())]


def _cells(values: Tensor, trace: Trace) -> NDArray[np.float64]:
    """Values of the tokens [N] where they lie, of a video in its middle frame; NaN where there is no token."""
    layout = Layout.of(trace.grid)
    cells = torch.full((layout.frames * layout.height * layout.width,), float("nan"), dtype=torch.float64)
    cells[: len(values)] = values.double()
    found: NDArray[np.float64] = cells.view(layout.frames, layout.height, layout.width)[layout.frames // 2].numpy()
    return found


def _over(mask: Tensor, trace: Trace, picture: Picture | None) -> NDArray[np.float64] | Picture:
    """The picture with the computed tokens in colour and the others faded; without one the tokens alone."""
    layout = Layout.of(trace.grid)
    if picture is None or layout.frames > 1 or not layout.of_picture:
        return _cells(mask, trace)
    return np.where(over_pixels(mask, trace.grid, picture)[..., None], picture, faded(picture, FADE))
