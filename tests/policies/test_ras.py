"""Region-adaptive sampling's scores, with exact values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokenprune import Memory, Observation, RegionAdaptivePolicy, Selection

PREDICTION = torch.tensor([[[1.0, -1.0], [10.0, 10.0], [0.0, 6.0], [3.0, 7.0], [0.0, 1.0], [0.0, 0.0]]])
"""Standard deviations 1, 0, 3, 2, 0.5, 0; norms sqrt 2, sqrt 200, 6, sqrt 58, 1, 0."""


@pytest.mark.parametrize(
    ("metric", "ascending", "expected"),
    [
        ("std", False, [2, 3]),
        ("std", True, [1, 5]),
        ("norm", False, [1, 3]),
        ("norm", True, [4, 5]),
    ],
)
def test_both_metrics_and_signs(
    observe: Callable[..., Observation], metric: Any, ascending: bool, expected: list[int]
) -> None:
    policy = RegionAdaptivePolicy(metric=metric, ascending=ascending)
    assert policy.select(observe(2, prediction=PREDICTION), {}).index.tolist() == [expected]


@pytest.mark.parametrize(("ascending", "sign"), [(False, 1), (True, -1)])
def test_exact_scores(observe: Callable[..., Observation], ascending: bool, sign: int) -> None:
    """After two steps that left out tokens 0 and 3, and one that left out 4: D = 2, 0, 0, 2, 1, 0."""
    policy, memory = RegionAdaptivePolicy(starvation=0.5, ascending=ascending), {}
    for step, left_out in enumerate([None, (0, 3), (0, 3, 4)]):
        kept = [token for token in range(6) if token not in (left_out or ())]
        previous = None if left_out is None else Selection.from_index(torch.tensor([kept]), 6)
        seen = observe(2, prediction=PREDICTION, previous=previous, pruned_steps=step)
        score = policy.score(seen, memory)[0]
    assert memory["drops"].tolist() == [[2, 0, 0, 2, 1, 0]]
    expected = [0.5 * drops + sign * math.log(std) for drops, std in ((2, 1.0), (0, 3.0), (2, 2.0), (1, 0.5))]
    assert score[[0, 2, 3, 4]].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("ascending", [False, True])
def test_no_token_starves(observe: Callable[..., Observation], ascending: bool) -> None:
    policy, previous = RegionAdaptivePolicy(starvation=1.0, ascending=ascending), None
    memory: Memory = {}
    counts = torch.zeros(6)
    prediction = PREDICTION + torch.tensor([[0.0, 0.1]])
    for step in range(60):
        seen = observe(1, prediction=prediction, previous=previous, step=step, pruned_steps=step)
        previous = policy.select(seen, memory)
        counts += previous.mask()[0]
    assert counts.min() >= 5


def test_one_channel_and_long_generations_stay_finite(observe: Callable[..., Observation]) -> None:
    memory = {"drops": torch.full((1, 6), 1e4)}
    scores = RegionAdaptivePolicy(starvation=1.0).score(observe(2, prediction=torch.ones(1, 6, 1)), memory)
    assert scores.isfinite().all()
    assert len(scores.unique()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "mean"}, "metric: expected one of std, norm, got 'mean'"),
        ({"starvation": -1.0}, r"starvation: expected a number of at least 0, got -1\.0"),
        ({"starvation": math.nan}, "starvation: expected a number of at least 0, got nan"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionAdaptivePolicy(**given)
