"""A region comes first, excluded tokens last, the inner policy decides the rest."""

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
    NoisePolicy,
    Observation,
    RegionPolicy,
    SelectionPolicy,
    SequentialPolicy,
    WarmupSchedule,
)

RISING = torch.arange(6.0).view(1, 6, 1).repeat(1, 1, 2)
"""Noise that grows along the grid, so that the noise policy prefers 5, 4, 3, ..."""


def mask(*tokens: int, size: int = 6, shape: tuple[int, ...] = (2, 3)) -> Tensor:
    inside = torch.zeros(size, dtype=torch.bool)
    inside[list(tokens)] = True
    return inside.view(shape)


def chosen(policy: SelectionPolicy, seen: Observation) -> list[int]:
    return policy.select(seen, {}).index[0].tolist()


@pytest.mark.parametrize(
    ("count", "region", "excluded", "expected"),
    [
        (1, (0, 2), (), [2]),
        (2, (0, 2), (), [0, 2]),
        (4, (0, 2), (), [0, 2, 4, 5]),
        (2, (0, 1, 2), (), [1, 2]),
        (3, (0,), (5, 4), [0, 2, 3]),
        (5, (0,), (5, 4), [0, 1, 2, 3, 5]),
        (2, (0, 5), (5,), [0, 4]),
        (6, (0,), (5,), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_around_scores(
    observe: Callable[..., Observation],
    count: int,
    region: tuple[int, ...],
    excluded: tuple[int, ...],
    expected: list[int],
) -> None:
    policy = RegionPolicy(NoisePolicy(), mask(*region), mask(*excluded))
    assert chosen(policy, observe(count, prediction=RISING)) == expected


@pytest.mark.parametrize(
    ("count", "region", "expected"),
    [
        (2, (4, 5), [4, 5]),
        (3, (4, 5), [1, 4, 5]),
        (2, (0, 2, 3, 5), [0, 3]),
        (1, (3, 5), [3]),
    ],
)
def test_around_a_policy_that_only_selects(
    observe: Callable[..., Observation], count: int, region: tuple[int, ...], expected: list[int]
) -> None:
    """The inner one wants the first n; beyond that the oldest come first: 3, then 1, then in grid order."""
    age = torch.tensor([[1, 2, 1, 3, 1, 1]])
    policy = RegionPolicy(SequentialPolicy(), mask(*region))
    assert chosen(policy, observe(count, age=age)) == expected


@pytest.mark.parametrize("inner", [NoisePolicy(), CATPolicy(num_clusters=4), SequentialPolicy()])
def test_covered_whenever_n_allows(observe: Callable[..., Observation], inner: SelectionPolicy) -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 4, 9, 17, 29):
        region = torch.rand(5, 6, generator=generator) < 0.3
        excluded = (torch.rand(5, 6, generator=generator) < 0.3) & ~region
        policy, memory, previous = RegionPolicy(inner, region, excluded), {}, None
        for step in range(3):
            prediction = torch.randn(2, 30, 4, generator=generator)
            seen = observe(count, (5, 6), prediction=prediction, step=step, pruned_steps=step, previous=previous)
            previous = policy.select(seen, memory)
            covered = previous.mask() & region.flatten()
            spared = previous.mask() & excluded.flatten()
            assert covered.sum(1).tolist() == [min(count, int(region.sum()))] * 2
            assert spared.sum(1).tolist() == [max(0, count - 30 + int(excluded.sum()))] * 2


def test_pixels_belong_to_tokens() -> None:
    pixels = torch.zeros(4, 9, dtype=torch.bool)
    pixels[1, 2] = pixels[2, 6] = True
    whole = torch.zeros(4, 9, dtype=torch.bool)
    whole[:2, 3:6] = True
    whole[2, :3] = True
    policy = RegionPolicy(NoisePolicy(), pixels, whole)
    assert policy._level((2, 3), torch.device("cpu")).tolist() == [0, 2, 1, 1, 1, 0]


def test_video_grids(observe: Callable[..., Observation]) -> None:
    frame = mask(1, size=4, shape=(2, 2))
    every = RegionPolicy(NoisePolicy(), frame)
    assert every._level((3, 2, 2), torch.device("cpu")).tolist() == [1, 0, 1, 1] * 3
    one = RegionPolicy(NoisePolicy(), mask(5, size=12, shape=(3, 2, 2)))
    assert chosen(one, observe(1, (3, 2, 2))) == [5]


def test_what_comes_from_the_inner_policy(observe: Callable[..., Observation]) -> None:
    policy = RegionPolicy(ErrorControlledPolicy(0.4, 5), mask(0))
    assert policy.needs == {"forecast_error"}
    assert (policy.alpha, policy.warmup_steps) == (0.4, 5)
    assert policy.schedule() == WarmupSchedule(0.4, 5)
    assert RegionPolicy(NoisePolicy(), mask(0)).needs == frozenset()
    memory: Memory = {}
    RegionPolicy(CATPolicy(num_clusters=2), mask(0)).select(observe(2, prediction=RISING), memory)
    assert memory.keys() >= {f"inner.{name}" for name in ("labels", "edges", "weights", "frequency")}
    assert {name for name in memory if not name.startswith("inner.")} == {"level"}


def test_equal_only_to_itself() -> None:
    one, other = RegionPolicy(NoisePolicy(), mask(0)), RegionPolicy(NoisePolicy(), mask(1))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert "tensor" not in repr(one)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "mask: expected a region or tokens to exclude, got neither"),
        ({"mask": torch.ones(2, 3)}, r"mask: expected dtype torch\.bool, got torch\.float32"),
        ({"exclude": torch.ones(2, 3)}, r"exclude: expected dtype torch\.bool, got torch\.float32"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionPolicy(NoisePolicy(), **given)


@pytest.mark.parametrize("shape", [(3, 3), (2,), (3,), (0, 3), (2, 2, 3)])
def test_masks_that_do_not_fit(observe: Callable[..., Observation], shape: tuple[int, ...]) -> None:
    policy = RegionPolicy(NoisePolicy(), exclude=torch.zeros(shape, dtype=torch.bool))
    message = rf"exclude: expected extents that are whole multiples of the token grid's \[2, 3\], got \[{shape[0]}"
    with pytest.raises(ValueError, match=message):
        policy.select(observe(2), {})


def test_a_model_computes_the_region_at_every_step(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    region = torch.zeros(8, 12, dtype=torch.bool)
    region[:3, :4] = True
    with tokenprune.apply(sd3, RegionPolicy(NoisePolicy(0.3, 2), region)) as handle:
        generate(sd3, steps=6)
        report = handle.report()
    assert [step.tokens for step in report.steps] == [24] * 2 + [7] * 4
    assert report.token_counts is not None
    assert report.token_counts.view(4, 6)[:2, :2].tolist() == [[6, 6], [6, 6]]
