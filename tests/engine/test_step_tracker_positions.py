"""Noise level and remaining steps, as a tracker of calls tells them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tokenprune.engine.step_tracker import CallPosition, StepTracker

LATENTS = torch.zeros(2, 4, 8, 8)


def follow(
    timesteps: Sequence[Tensor | float], rises: bool = False, tracker: StepTracker | None = None
) -> list[CallPosition]:
    tracker = tracker or StepTracker(rises)
    return [tracker.advance(timestep, LATENTS) for timestep in timesteps]


def levels(positions: list[CallPosition]) -> list[float]:
    return [pytest.approx(position.level) for position in positions]


def test_a_table() -> None:
    table = torch.tensor([800.0, 600.0, 400.0, 200.0])
    positions = follow([entry.expand(2) for entry in table])
    assert levels(positions) == [1, 0.75, 0.5, 0.25]
    assert [position.remaining for position in positions] == [4, 3, 2, 1]


def test_whole_numbers() -> None:
    positions = follow(list(torch.tensor([1000, 500, 100])))
    assert levels(positions) == [1, 0.5, 0.1]
    assert [position.remaining for position in positions] == [3, 2, 1]


def test_a_sliced_table() -> None:
    """Image-to-image starts in the middle of the scheduler's table."""
    table = torch.linspace(1000, 100, 10)
    positions = follow([entry.expand(2) for entry in table[6:]])
    assert [position.time for position in positions] == [400, 300, 200, 100]
    assert levels(positions) == [1, 0.75, 0.5, 0.25]
    assert [position.remaining for position in positions] == [4, 3, 2, 1]


@pytest.mark.parametrize("fresh", [lambda t: torch.full((2,), t), lambda t: torch.tensor(t), float])
def test_fresh_timesteps_do_not_tell_what_remains(fresh: type[float]) -> None:
    positions = follow([fresh(time) for time in (900.0, 450.0, 90.0)])
    assert levels(positions) == [1, 0.5, 0.1]
    assert [position.remaining for position in positions] == [None, None, None]


def test_times_that_rise() -> None:
    table = torch.tensor([0.2, 0.4, 0.6, 1.0])
    positions = follow(list(table), rises=True)
    assert levels(positions) == [1, 0.75, 0.5, 0]
    assert [position.remaining for position in positions] == [4, 3, 2, 1]
    assert [position.step for position in positions] == [0, 1, 2, 3]


def test_the_level_is_relative_to_its_own_generation() -> None:
    tracker = StepTracker(time_rises=False)
    follow([800.0, 400.0], tracker=tracker)
    again = follow([1000.0, 500.0, 0.0], tracker=tracker)
    assert again[0].first_of_generation
    assert levels(again) == [1, 0.5, 0]


def test_a_generation_that_starts_without_noise() -> None:
    (position,) = follow([0.0])
    assert position.level == 1


def test_the_calls_of_a_step_agree() -> None:
    table = torch.tensor([800.0, 400.0])
    positions = follow([table[0], table[0], table[1], table[1]])
    assert [position.step for position in positions] == [0, 0, 1, 1]
    assert levels(positions) == [1, 1, 0.5, 0.5]
    assert [position.remaining for position in positions] == [2, 2, 1, 1]
