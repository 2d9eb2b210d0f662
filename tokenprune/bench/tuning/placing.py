"""Placing full steps by what the plain model predicted at all of its steps.

Between two full steps predictions are forecast, and afterwards corrected (`Corrector`): what is left is how far they
are off the line between both, summed up along the way with the step sizes. Meanwhile the forecasts' own errors go into
the latents, and the next prediction answers to them: a tenth of what they sum up to. What is skipped at the very end
nothing corrects. The places whose costs sum up to the least are found by a dynamic programme over the last two full
steps, as a forecast is the line through these. Everything that it asks for is the length of a weighted sum of
predictions, which their products tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tokenprune.placement import FixedSchedule

FORECAST_SHARE = 0.1
"""Share of a gap's squared error that is left after its correction."""

LONGEST_GAP = 8
"""Steps from one full step to the next; more where there are too few full steps for it."""


@dataclass(frozen=True)
class Predictions:
    """What the plain model predicted.

    Attributes:
        products: sums of products of the predictions of two steps, over elements and pictures [N, N].
        times: the steps' times, as forecasts take them.
        sizes: how far a prediction of size 1 moves the latents at each step.
    """

    products: NDArray[np.float64]
    times: Sequence[float]
    sizes: Sequence[float]


def nearest_places(plain: Predictions, full: int) -> FixedSchedule:
    """The places of so many full steps, the first included, that cost least; linear forecasts.

    Args:
        plain: of N steps.
        full: 1 to N.
    """
    total = len(plain.times)
    longest = max(LONGEST_GAP, 2 * math.ceil(total / full))

    @cache
    def left_over(first: int, then: int) -> float:
        return _squared(plain, {k: _line(plain.times, first, then, k) for k in range(first + 1, then)})

    @cache
    def forecast(before: int | None, last: int, until: int) -> float:
        held = {last: 1.0}
        lines = {k: held if before is None else _line(plain.times, before, last, k) for k in range(last + 1, until)}
        return _squared(plain, lines)

    nearest: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {(None, 0): (0.0, (0,))}
    for made in range(1, full):
        further: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {}
        for (before, last), (cost, places) in nearest.items():
            for then in range(last + 1, min(last + longest, total - full + made) + 1):
                spent = cost + left_over(last, then) + FORECAST_SHARE * forecast(before, last, then)
                if (last, then) not in further or spent < further[last, then][0]:
                    further[last, then] = spent, (*places, then)
        nearest = further
    ends = ((cost + forecast(before, last, total), places) for (before, last), (cost, places) in nearest.items())
    return FixedSchedule(min(ends)[1], total)


def _line(times: Sequence[float], first: int, second: int, at: int) -> dict[int, float]:
    """The value at a step on the line through those of two others, as their weights."""
    share = (times[at] - times[first]) / (times[second] - times[first])
    return {first: 1 - share, second: share}


def _squared(plain: Predictions, lines: dict[int, dict[int, float]]) -> float:
    """How far the latents are off, squared, where the predictions of some steps are those weighted sums of others."""
    weights = np.zeros(len(plain.times))
    for step, line in lines.items():
        weights[step] += plain.sizes[step]
        for other, weight in line.items():
            weights[other] -= plain.sizes[step] * weight
    return float(weights @ plain.products @ weights)
