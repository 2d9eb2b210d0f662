"""Speed as a ratio of times that were measured in turns, and whether it says anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.02
"""By what share a ratio may pass what the operations allow: counts leave out what is no multiplication."""


@dataclass(frozen=True)
class Speed:
    """How many times as fast as the plain model.

    Attributes:
        ratio: median of the pairs.
        spread: interquartile range of the pairs.
        noise: why the ratio says nothing; None where it does.
    """

    ratio: float
    spread: float
    noise: str | None

    def __str__(self) -> str:
        return in_words(self.ratio, self.noise)


def speed_of(pairs: Sequence[tuple[float, float]], allowed: float | None) -> Speed:
    """The ratio of (plain seconds, own seconds), each pair measured in turns.

    It is noise where it lies above what the operations allow, or where the pairs differ by more than it does from 1.

    Args:
        pairs: at least one.
        allowed: the plain model's operations over the own ones; None where that is no bound, as for compiled code.
    """
    ratio, spread = median_and_spread([plain / own for plain, own in pairs])
    noise = None
    if allowed is not None and ratio > allowed * (1 + TOLERANCE):
        noise = f"{ratio:.2f}x is above the {allowed:.2f}x that the operations allow: the machine was busy, or too slow"
    elif len(pairs) > 1 and spread > abs(ratio - 1):
        noise = f"{ratio:.2f}x is nearer to 1 than its pairs are to each other (interquartile range {spread:.2f})"
    return Speed(ratio, spread, noise)


def in_words(ratio: float, noise: str | None) -> str:
    """A speed for tables: `1.45`, or `noise (1.45)`."""
    return f"{ratio:.2f}" if noise is None else f"noise ({ratio:.2f})"


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    low, middle, high = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75))
    return float(middle), float(high - low)
