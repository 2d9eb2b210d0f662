"""Observations made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokenprune import Observation


def _observe(count: int, grid: tuple[int, ...] = (2, 3), **known: Any) -> Observation:
    tokens = math.prod(grid)
    prediction = known.pop("prediction", torch.zeros(1, tokens, 2))
    defaults: dict[str, Any] = {
        "reference": torch.zeros_like(prediction),
        "step": 3,
        "pruned_steps": 0,
        "time": 900.0,
        "previous": None,
    }
    return Observation(prediction=prediction, count=count, grid=grid, **{**defaults, **known})


@pytest.fixture(scope="session")
def observe() -> Callable[..., Observation]:
    return _observe
