"""Placing full steps by what the plain model predicted, against trying all places."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenprune.bench.tuning.placing import FORECAST_SHARE, Predictions, nearest_places


def predictions(values: NDArray[np.float64], times: NDArray[np.float64], sizes: NDArray[np.float64]) -> Predictions:
    return Predictions(values @ values.T, times.tolist(), sizes.tolist())


def cost(
    values: NDArray[np.float64], times: NDArray[np.float64], sizes: NDArray[np.float64], full: tuple[int, ...]
) -> float:
    """Of some places, from the predictions themselves."""

    def off(first: int, second: int, steps: range) -> float:
        if first == second:
            moved = [sizes[k] * (values[k] - values[first]) for k in steps]
        else:
            share = [(times[k] - times[first]) / (times[second] - times[first]) for k in steps]
            lines = [values[first] + part * (values[second] - values[first]) for part in share]
            moved = [sizes[k] * (values[k] - line) for k, line in zip(steps, lines, strict=True)]
        return float(np.square(np.sum(moved, axis=0)).sum()) if moved else 0.0

    total = 0.0
    for place, last in enumerate(full):
        before = full[max(place - 1, 0)]
        if place + 1 == len(full):
            return total + off(before, last, range(last + 1, len(times)))
        then = full[place + 1]
        total += off(last, then, range(last + 1, then))
        total += FORECAST_SHARE * off(before, last, range(last + 1, then))
    raise AssertionError


@given(st.integers(0, 10**6), st.integers(1, 7))
def test_no_places_cost_less(seed: int, full: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal((7, 3)).cumsum(0)
    times, sizes = -random.uniform(0.5, 1.5, 7).cumsum(), random.uniform(0.5, 1.5, 7)
    found = nearest_places(predictions(values, times, sizes), full).full
    every = [(0, *later) for later in combinations(range(1, 7), full - 1)]
    assert found in every
    least = min(cost(values, times, sizes, each) for each in every)
    assert cost(values, times, sizes, found) == pytest.approx(least, rel=1e-6, abs=1e-9)


def test_full_steps_lie_where_predictions_turn() -> None:
    """On straight lines in time there is nothing to compute; both ends of a bend are needed."""
    times = -np.arange(12.0)
    bent = np.where(times > -6, 0.0, times + 6)[:, None]
    found = nearest_places(predictions(bent, times, np.ones(12)), 4).full
    assert found[0] == 0
    assert {6, 7} & set(found)
    assert cost(bent, times, np.ones(12), found) < cost(bent, times, np.ones(12), (0, 3, 9, 11))


def test_few_full_steps_may_lie_far_apart() -> None:
    found = nearest_places(predictions(np.ones((40, 1)), -np.arange(40.0), np.ones(40)), 2)
    assert (len(found.full), found.steps) == (2, 40)
