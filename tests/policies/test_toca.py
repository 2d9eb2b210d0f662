"""ToCa's scores: against plain loops, with exact values, in models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenprune
from tokenprune import Observation, TocaPolicy
from tokenprune.policies.toca import best_of_neighbourhood


def slow_scores(
    attention: list[float], age: list[int], grid: tuple[int, ...], policy: TocaPolicy
) -> tuple[list[float], list[int]]:
    """Scores of one image and the best tokens of its neighbourhoods, token by token."""
    norm = math.sqrt(sum(a * a for a in attention))
    scores = [
        policy.influence * a / norm + policy.frequency * (steps - 1) / policy.interval
        for a, steps in zip(attention, age, strict=True)
    ]
    height, width = grid[-2:]
    squares: dict[tuple[int, ...], list[int]] = {}
    for token in range(math.prod(grid)):
        frame, place = divmod(token, height * width)
        row, column = divmod(place, width)
        square = (frame, row // policy.neighbourhood, column // policy.neighbourhood)
        squares.setdefault(square, []).append(token)
    best = sorted(max(tokens, key=lambda token: (scores[token], -token)) for tokens in squares.values())
    for token in best:
        scores[token] *= 1 + policy.uniformity
    return scores, best


@given(
    grid=st.one_of(st.tuples(*[st.integers(1, 7)] * 2), st.tuples(*[st.integers(1, 4)] * 3)),
    side=st.integers(1, 4),
    seed=st.integers(0, 1000),
    images=st.integers(1, 3),
    coarse=st.booleans(),
)
def test_scores_are_those_of_plain_loops(
    observe: Callable[..., Observation], grid: tuple[int, ...], side: int, seed: int, images: int, coarse: bool
) -> None:
    """Coarse attention has equally good tokens within a neighbourhood."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, math.prod(grid))
    attention = torch.rand(shape, generator=generator) + 0.01
    attention = (2 * attention).ceil() if coarse else attention
    age = torch.randint(1, 3 if coarse else 9, shape, generator=generator, dtype=torch.int32)
    policy = TocaPolicy(neighbourhood=side, interval=4.0, uniformity=0.5, influence=0.7)
    seen = observe(1, grid, prediction=torch.zeros(*shape, 2), attention=attention, age=age)
    scores = policy.score(seen, {})
    for image in range(images):
        expected, _ = slow_scores(attention[image].tolist(), age[image].tolist(), grid, policy)
        assert scores[image].tolist() == pytest.approx(expected, rel=1e-4)


def test_the_best_of_each_neighbourhood() -> None:
    scores = torch.tensor([[5.0, 1, 2, 3, 9, 1, 7, 2, 3, 3, 3, 4, 0, 1, 0]])
    best = best_of_neighbourhood(scores, (3, 5), 2)
    assert best.view(3, 5).int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 1, 0, 1, 1]]


def test_frames_have_their_own_neighbourhoods() -> None:
    scores = torch.arange(12.0).view(1, 12)
    assert best_of_neighbourhood(scores, (3, 2, 2), 2).nonzero()[:, 1].tolist() == [3, 7, 11]
    assert best_of_neighbourhood(scores, (6, 2), 6).nonzero()[:, 1].tolist() == [11]


def test_exact_scores(observe: Callable[..., Observation]) -> None:
    """On a grid of 2 x 3 the neighbourhoods are tokens 0, 1, 3, 4 and 2, 5."""
    attention, age = torch.tensor([[3.0, 0, 4, 0, 0, 0]]), torch.tensor([[1, 1, 1, 13, 5, 1]])
    assert TocaPolicy().score(observe(2, attention=attention, age=age), {})[0].tolist() == pytest.approx(
        [0.6, 0, 0.8 * 1.6, 1.6, 1 / 3, 0]
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 0, 0), [2, 3]),
        ((0, 1, 0), [0, 4]),
        ((1, 0, 1), [2, 4]),
        ((1, 9, 0), [0, 4]),
    ],
)
def test_what_each_term_selects(
    observe: Callable[..., Observation], weights: tuple[float, float, float], expected: list[int]
) -> None:
    """By attention 2, 3, 4, by reuse 0, 4; 4 is the best of its neighbourhood, 3 is not as good as 2 in its own."""
    attention, age = torch.tensor([[1.0, 0, 9, 8, 7, 0]]), torch.tensor([[9, 1, 1, 1, 8, 1]])
    influence, frequency, uniformity = weights
    policy = TocaPolicy(influence=influence, frequency=frequency, uniformity=uniformity)
    assert policy.select(observe(2, (1, 6), attention=attention, age=age), {}).index.tolist() == [expected]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"influence": -1.0}, r"influence: expected a number of at least 0, got -1\.0"),
        ({"frequency": math.nan}, "frequency: expected a number of at least 0, got nan"),
        ({"uniformity": math.inf}, "uniformity: expected a number of at least 0, got inf"),
        ({"interval": 0.0}, r"interval: expected a number above 0, got 0\.0"),
        ({"neighbourhood": 0}, "neighbourhood: expected a whole number of at least 1, got 0"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TocaPolicy(**given)


def test_models_run_under_it_and_no_token_starves(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(model, TocaPolicy(0.3, 3)) as handle:
        assert generate(model, seeds=(0, 1), steps=10).isfinite().all()
        report = handle.report()
    assert [step.tokens for step in report.steps] == [24] * 3 + [7] * 7
    assert report.token_counts is not None
    assert report.token_counts.min() >= 4
