"""The line through points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.interpolation import interpolated

NUMBERS = st.floats(-1e3, 1e3)


@given(st.lists(st.tuples(st.integers(-100, 100), NUMBERS), min_size=1, unique_by=lambda point: point[0]), NUMBERS)
def test_it_is_the_line_through_rising_points_and_constant_beyond(points: list[tuple[int, float]], at: float) -> None:
    places, values = zip(*sorted(points), strict=True)
    assert interpolated(at, places, values) == pytest.approx(np.interp(at, places, values), abs=1e-6)


@pytest.mark.parametrize(("at", "value"), [(0.999, 1.0), (1.0, 5.0), (1.5, 5.5), (3.0, 9.0)])
def test_it_jumps_where_two_points_are_at_one_place(at: float, value: float) -> None:
    assert interpolated(at, [0, 1, 1, 2, 2], [1, 1, 5, 6, 9]) == value
