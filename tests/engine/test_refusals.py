"""Models whose output cannot be made from forecast tokens alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import nn

import tokenprune
from tokenprune import CATPolicy, UnsupportedCallError
from tokenprune.schedule import RefreshSchedule

EVERY_THIRD = RefreshSchedule(every=3, warmup_steps=2)
FULL = (0, 1, 4, 7)


class Doubling(SD3Transformer2DModel):
    """Computes with what its last projection gave."""

    factor = 2.0

    @functools.wraps(SD3Transformer2DModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (super().forward(*args, **kwargs)[0] * self.factor,)


class Twofold(SD3Transformer2DModel):
    """Returns two tensors."""

    @functools.wraps(SD3Transformer2DModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs) * 2


@pytest.mark.parametrize("factor", [2.0, 0.5, -1.0, 1.001])
def test_a_model_that_computes_after_its_exit_is_refused(sd3: nn.Module, factor: float, make_steps: Any) -> None:
    sd3.__class__, sd3.factor = Doubling, factor
    steps = make_steps(sd3)
    plain = list(steps)
    handle = tokenprune.apply(sd3, CATPolicy(), schedule=EVERY_THIRD)
    with pytest.raises(UnsupportedCallError, match=r"rearrangement of its exit's tokens.*Use a fraction above 0"):
        steps.call(0)
    handle.remove()
    assert "forward" not in sd3.__dict__
    assert all(torch.equal(a, b) for a, b in zip(steps, plain, strict=True))
    with tokenprune.apply(sd3, CATPolicy(), schedule=RefreshSchedule(3, alpha=0.25, warmup_steps=2)):
        made = list(steps)
    assert all(torch.equal(made[i], plain[i]) for i in FULL)


def test_a_refused_model_is_refused_again(sd3: nn.Module, make_steps: Any) -> None:
    sd3.__class__ = Doubling
    steps = make_steps(sd3)
    with tokenprune.apply(sd3, CATPolicy(), schedule=EVERY_THIRD):
        for _ in range(2):
            with pytest.raises(UnsupportedCallError, match="rearrangement"):
                steps.call(0)


def test_a_model_with_two_outputs_is_refused(sd3: nn.Module, make_steps: Any) -> None:
    sd3.__class__ = Twofold
    with (
        tokenprune.apply(sd3, CATPolicy(), schedule=EVERY_THIRD),
        pytest.raises(UnsupportedCallError, match=r"output is one tensor.*got 2 values"),
    ):
        make_steps(sd3).call(0)
