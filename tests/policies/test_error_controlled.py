"""The expected error of not computing a token, with exact values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tokenprune
from tokenprune import ErrorControlledPolicy, Observation, Taylor

ERROR = torch.tensor([[8.0, 4.0, 2.0, 1.0, 1.0, 0.0]])
AGE = torch.tensor([[1, 3, 4, 8, 6, 2]], dtype=torch.int32)
GAP = torch.tensor([[2, 3, 1, 2, 1, 1]], dtype=torch.int32)


def score(seen: Observation, **settings: Any) -> list[float]:
    return ErrorControlledPolicy(**{"smoothing": 0.0, **settings}).score(seen, {})[0].tolist()


@pytest.mark.parametrize(
    ("order", "floor", "expected"),
    [
        (0, 0.0, [4, 4, 8, 4, 6, 0]),
        (1, 0.0, [2, 4, 32, 16, 36, 0]),
        (0, 0.75, [5, 6, 16, 12, 18, 4]),
    ],
)
def test_exact_scores(observe: Callable[..., Observation], order: int, floor: float, expected: list[float]) -> None:
    """Relative to the largest forecast error 8; the mean is 16/6, of which 0.75 are 2."""
    seen = observe(2, age=AGE, forecast_error=ERROR, gap=GAP)
    assert score(seen, order=order, floor=floor) == pytest.approx([value / 8 for value in expected])


def test_scores_are_averaged_over_the_neighbourhood(observe: Callable[..., Observation]) -> None:
    """On a 2 x 3 grid: against Gaussian weights put together pair by pair."""
    seen = observe(2, age=AGE, forecast_error=ERROR, gap=GAP)
    assert seen.grid == (2, 3)
    plain, places = score(seen, floor=0.0), [(row, column) for row in range(2) for column in range(3)]
    expected = []
    for row, column in places:
        weights = [math.exp(-((row - r) ** 2 + (column - c) ** 2) / (2 * 0.8**2)) for r, c in places]
        expected.append(sum(w * value for w, value in zip(weights, plain, strict=True)) / sum(weights))
    assert score(seen, floor=0.0, smoothing=0.8) == pytest.approx(expected, rel=1e-5)


def test_what_is_selected(observe: Callable[..., Observation]) -> None:
    seen = observe(2, age=AGE, forecast_error=ERROR, gap=GAP)
    assert ErrorControlledPolicy(floor=0.0, smoothing=0.0).select(seen, {}).index.tolist() == [[2, 4]]
    assert ErrorControlledPolicy(floor=0.0, order=2, smoothing=0.0).select(seen, {}).index.tolist() == [[2, 4]]


@pytest.mark.parametrize("known", [{}, {"forecast_error": torch.zeros(1, 6), "gap": GAP}])
def test_oldest_first_where_nothing_was_surprising(
    observe: Callable[..., Observation], known: dict[str, torch.Tensor]
) -> None:
    seen = observe(3, age=AGE, **known)
    assert ErrorControlledPolicy(order=1).select(seen, {}).index.tolist() == [[2, 3, 4]]


def test_an_image_without_forecast_errors_beside_one_with(observe: Callable[..., Observation]) -> None:
    forecast_error = torch.cat([ERROR, torch.zeros(1, 6)])
    seen = observe(
        2, prediction=torch.zeros(2, 6, 2), age=AGE.repeat(2, 1), forecast_error=forecast_error, gap=GAP.repeat(2, 1)
    )
    assert ErrorControlledPolicy(floor=0.0, smoothing=0.0).select(seen, {}).index.tolist() == [[2, 4], [3, 4]]


def test_without_ages_the_first_tokens(observe: Callable[..., Observation]) -> None:
    assert ErrorControlledPolicy().select(observe(2), {}).index.tolist() == [[0, 1]]


def test_no_token_starves(observe: Callable[..., Observation]) -> None:
    """One token is always surprising, the others never are; the floor makes each of them come up."""
    policy = ErrorControlledPolicy(floor=0.1, smoothing=0.0)
    age, counts = torch.ones(1, 6, dtype=torch.int32), torch.zeros(6)
    gap = torch.ones_like(age)
    forecast_error = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    for _ in range(400):
        chosen = policy.select(observe(1, age=age, forecast_error=forecast_error, gap=gap), {}).mask()
        counts += chosen[0]
        gap = torch.where(chosen, age, gap)
        age = torch.where(chosen, 1, age + 1)
    assert counts[1:].min() >= 1
    assert counts[0] > counts[1:].max()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_forecast_errors_out_of_bounds(observe: Callable[..., Observation], value: float) -> None:
    forecast_error = torch.tensor([[value, 1.0, 0.0, value, 0.0, 0.0]])
    scores = ErrorControlledPolicy().score(observe(2, age=AGE, forecast_error=forecast_error, gap=GAP), {})
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": -1}, "order: expected a whole number of at least 0, got -1"),
        ({"order": 0.5}, r"order: expected a whole number, got 0\.5"),
        ({"floor": -0.1}, r"floor: expected a number of at least 0, got -0\.1"),
        ({"floor": float("nan")}, "floor: expected a number of at least 0, got nan"),
        ({"smoothing": -1.0}, r"smoothing: expected a number of at least 0, got -1\.0"),
        ({"alpha": 0.0}, "alpha: expected a fraction"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ErrorControlledPolicy(**given)


def test_a_model_runs_under_it(sd3: nn.Module, generate: Callable[..., torch.Tensor]) -> None:
    with tokenprune.apply(sd3, ErrorControlledPolicy(0.3, 3, order=1), reuse=Taylor()) as handle:
        history = generate(sd3, steps=8)
        report = handle.report()
    assert history.isfinite().all()
    assert [step.tokens for step in report.steps] == [24] * 3 + [7] * 5
    assert report.token_counts is not None
    assert report.token_counts.sum() == 3 * 24 + 5 * 7
