"""A model that a loop of the user's own calls, with the scheduler that the loop has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Plan, RefreshSchedule, WarmupSchedule

STEPS = 10


class Pipe:
    """What `apply` needs of a pipeline."""

    def __init__(self, transformer: nn.Module, scheduler: Any) -> None:
        self.transformer, self.scheduler = transformer, scheduler


def loop(model: nn.Module, scheduler: Any, predict: Any, latents: Tensor, given: Any) -> Tensor:
    """As a user writes it."""
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for time in scheduler.timesteps:
            noise = predict(model, latents, time.expand(len(latents)), given)
            latents = scheduler.step(noise, time, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_loop_with_its_scheduler_draws_what_a_pipeline_does(
    kind: type, sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    """The corrector works, and the full steps lie where the sampler's sizes put them."""
    scheduler, latents, given = kind(), make_latents((0,), (4, 6)), make_condition((0,), 5)
    plan = tokenprune.plan(sd3, 0.5)
    with tokenprune.apply(Pipe(sd3, scheduler), plan) as handle:
        expected, steps = loop(sd3, scheduler, predict, latents, given), handle.report().steps
    with tokenprune.apply(sd3, plan, scheduler=scheduler) as handle:
        found = loop(sd3, scheduler, predict, latents, given)
        assert [step.full for step in handle.report().steps] == [step.full for step in steps]
        assert any(step.correction for step in handle.report().steps)
    assert torch.equal(found, expected)
    assert "step" not in vars(scheduler)
    with tokenprune.apply(sd3, plan):
        assert not torch.equal(loop(sd3, scheduler, predict, latents, given), expected)


def test_the_last_steps_are_known(
    sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    scheduler, latents, given = FlowMatchEulerDiscreteScheduler(), make_latents((0,), (4, 6)), make_condition((0,), 5)
    with tokenprune.apply(
        sd3, CATPolicy(), schedule=WarmupSchedule(0.3, 3, last_full=2), scheduler=scheduler
    ) as handle:
        loop(sd3, scheduler, predict, latents, given)
        assert [step.full for step in handle.report().steps] == [True] * 3 + [False] * 5 + [True] * 2


def test_without_the_scheduler_a_corrector_says_what_to_do(sd3: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tokenprune"):
        tokenprune.apply(sd3, tokenprune.plan(sd3, 0.5)).remove()
    assert "scheduler=..." in caplog.text


def test_what_is_no_scheduler_is_refused(sd3: nn.Module) -> None:
    plan = Plan(CATPolicy(), RefreshSchedule(2))
    with pytest.raises(TypeError, match="scheduler: expected a scheduler of diffusers, with `timesteps` and `step`"):
        tokenprune.apply(sd3, plan, scheduler=torch.linspace(1, 0, 5))
    with pytest.raises(TypeError, match="scheduler: expected none beside a pipeline, whose own is used, got DDIM"):
        tokenprune.apply(Pipe(sd3, DDIMScheduler()), plan, scheduler=DDIMScheduler())
    assert not sd3._forward_hooks
