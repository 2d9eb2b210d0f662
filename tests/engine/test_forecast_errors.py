"""Schedules that go by how far the forecasts of full steps were off."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Hold, Schedule, Step

FULL = (0, 1, 4, 6)


@dataclass
class Listening(Schedule):
    """Full at given steps; keeps what it is told at each step."""

    told: list[Step] = field(default_factory=list)
    asks_errors = True
    skips = True

    def fraction(self, step: Step) -> float:
        """As listed."""
        if not self.told or self.told[-1].index != step.index:
            self.told.append(step)
        return float(step.index in FULL)


def length(pictures: Tensor) -> float:
    """Of a token's values, 2 x 2 pixels in all channels: the root mean square over tokens and images."""
    return float(pictures.square().mean().mul(4 * pictures.shape[1]).sqrt())


def test_errors_are_those_of_the_forecasts_at_full_steps(sd3: nn.Module, make_steps: Any) -> None:
    """A prediction that is held is off by what the next computed one differs from it."""
    steps = make_steps(sd3, images=2, steps=8)
    schedule = Listening()
    with tokenprune.apply(sd3, CATPolicy(), schedule=schedule, reuse=Hold()):
        made = list(steps)
    told = {step.index: step for step in schedule.told}
    assert told[1].errors == ()
    assert told[1].full == (0,)
    assert told[7].full == FULL
    assert [error.index for error in told[7].errors] == [1, 4, 6]
    assert [error.gap for error in told[7].errors] == [1, 3, 2]
    for error, (before, now) in zip(told[7].errors, pairwise(FULL), strict=True):
        assert error.error == pytest.approx(length(made[now] - made[before]), rel=1e-4)
        assert error.size == pytest.approx(length(made[now]), rel=1e-4)
    assert told[5].errors == told[7].errors[:2]
