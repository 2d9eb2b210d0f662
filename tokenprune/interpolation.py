"""Values between points that were measured or given."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence


def interpolated(at: float, points: Sequence[float], values: Sequence[float]) -> float:
    """The value at a place, linear between points that rise, and constant beyond them.

    Args:
        at: the place.
        points: at least one, rising; where two are equal, the value jumps there to that of the later one.
        values: one for each point.
    """
    after = min(bisect(points, at), len(points) - 1)
    before = max(after - 1, 0)
    width = points[after] - points[before]
    share = min(1.0, max(0.0, (at - points[before]) / width)) if width else float(at >= points[after])
    return values[before] + share * (values[after] - values[before])
