"""Several policies share n tokens, each token once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    CATPolicy,
    ErrorControlledPolicy,
    Memory,
    MixturePolicy,
    NoisePolicy,
    NoiseStalenessPolicy,
    Observation,
    RandomPolicy,
    SequentialPolicy,
)

RISING = torch.arange(6.0).view(1, 6, 1).repeat(1, 1, 2)


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ((1, 1), 4, [2, 2]),
        ((1, 1), 5, [2, 3]),
        ((0.25, 0.75), 8, [2, 6]),
        ((1, 1, 1), 9, [3, 3, 3]),
        ((0.1, 0.2), 3, [1, 2]),
        ((1, 1, 1), 1, [0, 0, 1]),
        ((3,), 7, [7]),
    ],
)
def test_quotas(shares: tuple[float, ...], count: int, expected: list[int]) -> None:
    assert MixturePolicy(parts=tuple((NoisePolicy(), share) for share in shares)).quotas(count) == expected


def test_the_same_policy_twice_is_that_policy(observe: Callable[..., Observation]) -> None:
    prediction = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    seen = observe(11, (5, 6), prediction=prediction)
    twice = MixturePolicy(parts=((NoisePolicy(), 0.4), (NoisePolicy(), 0.6)))
    assert torch.equal(twice.select(seen, {}).index, NoisePolicy().select(seen, {}).index)


@pytest.mark.parametrize(
    ("first_share", "count", "expected"),
    [(1, 4, [0, 1, 4, 5]), (3, 4, [0, 3, 4, 5]), (1, 2, [0, 5]), (2, 6, [0, 1, 2, 3, 4, 5])],
)
def test_noise_and_rows(
    observe: Callable[..., Observation], first_share: float, count: int, expected: list[int]
) -> None:
    policy = MixturePolicy(parts=((NoisePolicy(), first_share), (SequentialPolicy(), 1)))
    assert policy.select(observe(count, prediction=RISING), {}).index.tolist() == [expected]


def test_what_a_part_may_not_have_twice_leaves_it_the_oldest(observe: Callable[..., Observation]) -> None:
    """Rows are asked for 4 tokens (0 to 3); 0 and 1 are the noisiest, and of 2 and 3 the older one is taken."""
    falling, age = RISING.flip(1), torch.tensor([[9, 9, 1, 2, 9, 9]])
    policy = MixturePolicy(parts=((NoisePolicy(), 2), (SequentialPolicy(), 1)))
    assert policy.select(observe(3, prediction=falling, age=age), {}).index.tolist() == [[0, 1, 2]]
    policy = MixturePolicy(parts=((NoisePolicy(), 1), (SequentialPolicy(), 1)))
    assert policy.select(observe(4, prediction=falling, age=age), {}).index.tolist() == [[0, 1, 2, 3]]
    policy = MixturePolicy(parts=((NoisePolicy(), 1), (SequentialPolicy(), 1), (SequentialPolicy(), 1)))
    age = torch.tensor([[9, 1, 5, 2, 1, 1]])
    assert policy.select(observe(3, prediction=RISING, age=age), {}).index.tolist() == [[0, 2, 5]]


def test_parts_have_their_own_memories(observe: Callable[..., Observation]) -> None:
    parts = ((CATPolicy(num_clusters=2), 1), (NoiseStalenessPolicy(), 1), (NoiseStalenessPolicy(decay=0.1), 1))
    memory: Memory = {}
    MixturePolicy(parts=parts).select(observe(3, prediction=RISING), memory)
    assert memory.keys() >= {f"0.{name}" for name in ("labels", "edges", "weights", "frequency")}
    assert {name for name in memory if not name.startswith("0.")} == {"1.frequency", "2.frequency"}


def test_a_part_with_no_tokens_still_remembers(observe: Callable[..., Observation]) -> None:
    policy, memory = MixturePolicy(parts=((NoiseStalenessPolicy(), 1), (RandomPolicy(), 5))), {}
    previous = policy.select(observe(2, prediction=RISING), memory)
    later = observe(6, prediction=RISING, previous=previous, pruned_steps=1)
    assert policy.select(later, memory).count == 6


def test_needs_are_those_of_all_parts() -> None:
    assert MixturePolicy(parts=((NoisePolicy(), 1), (ErrorControlledPolicy(), 1))).needs == {"forecast_error"}
    assert MixturePolicy(parts=((NoisePolicy(), 1),)).needs == frozenset()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"parts: expected at least one pair \(policy, share\), got none"),
        ({"parts": ((NoisePolicy(), 0),)}, "parts: expected shares above 0, got 0"),
        ({"parts": ((NoisePolicy(), float("nan")),)}, "parts: expected shares above 0, got nan"),
        ({"parts": ((NoisePolicy(), 1),), "alpha": 2}, "alpha: expected a fraction"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixturePolicy(**given)


def test_a_model_runs_under_it(pixart: nn.Module, generate: Callable[..., Tensor]) -> None:
    policy = MixturePolicy(0.3, 2, parts=((NoisePolicy(), 0.5), (ErrorControlledPolicy(), 0.5)))
    with tokenprune.apply(pixart, policy) as handle:
        assert generate(pixart, steps=5).isfinite().all()
        assert [step.tokens for step in handle.report().steps] == [24] * 2 + [7] * 3
