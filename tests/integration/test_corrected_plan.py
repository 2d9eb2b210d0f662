"""The recommended plan on pipelines: its latents against a sampler that does the same by formula, and what users do."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

import tokenprune
from tokenprune import Corrector, DensePolicy, Hold, ListSchedule, Plan

STEPS = 8
FULL = (0, 1, 4, 7)
PLAN = Plan(DensePolicy(), ListSchedule(tuple(float(i in FULL) for i in range(STEPS))), Hold(), Corrector(12.0))


class EulerWithHindsight(FlowMatchEulerDiscreteScheduler):
    """Holds the prediction of the last full step, and makes that good at the next, by Euler's formula."""

    _before: tuple[Any, ...] | None = None

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **rest: Any) -> Any:
        """One step."""
        i = STEPS - int((self.timesteps <= timestep).sum())
        sigma = self.sigmas.double()
        falls = sigma[1:] - sigma[:-1]
        if i in FULL:
            value, latents = model_output.double(), sample.double()
            if self._before is not None and i > self._before[0] + 1:
                a, first, start = self._before
                shares = (sigma[a:i] - sigma[a]) / (sigma[i] - sigma[a])
                again = start + sum(falls[a + k] * (first + share * (value - first)) for k, share in enumerate(shares))
                answer = 12.0 * float(sigma[i]) ** 2
                slope = float(sum(falls[a + k] * share for k, share in enumerate(shares)))
                way = (again - latents) / (1 - answer * slope)
                latents, value = latents + way, value + answer * way
            self._before = (i, value, latents)
            self._value = value
        else:
            value, latents = self._value, sample.double()
        return ((latents + falls[i] * value).to(sample.dtype),)


def test_a_plan_equals_a_sampler_with_hindsight(sd3: Any, draw: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, PLAN) as handle:
        made = draw(sd3, num_inference_steps=STEPS)
        report = handle.report()
    assert [step.step for step in report.steps if step.full] == list(FULL)
    assert [step.step for step in report.steps if step.correction is not None] == [4, 7]
    plain = draw(sd3, num_inference_steps=STEPS)
    sd3.scheduler = EulerWithHindsight.from_config(sd3.scheduler.config)
    expected = draw(sd3, num_inference_steps=STEPS)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert (made - plain).abs().max() > 1e-3


def test_generations_are_alike_and_nothing_stays(pipe: Any, draw: Callable[..., Tensor]) -> None:
    plain = draw(pipe)
    handle = tokenprune.apply(pipe, tokenprune.plan(pipe, 0.5))
    first, other, again = draw(pipe), draw(pipe, seed=1, num_inference_steps=9), draw(pipe)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    copied = copy.deepcopy(pipe)
    assert torch.equal(draw(copied), plain)
    handle.remove()
    assert "step" not in pipe.scheduler.__dict__
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("make", [DDIMScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler])
def test_a_sampler_that_is_put_in_later(pixart: Any, draw: Callable[..., Tensor], make: Any) -> None:
    with tokenprune.apply(pixart, tokenprune.plan(pixart, 0.5)) as handle:
        draw(pixart)
        former, pixart.scheduler = pixart.scheduler, make.from_config(pixart.scheduler.config)
        made = draw(pixart)
        assert "step" not in former.__dict__
        assert any(step.correction is not None for step in handle.report().steps)
    with tokenprune.apply(pixart, tokenprune.plan(pixart, 0.5)):
        assert torch.equal(draw(pixart), made)


def test_an_interrupted_generation(sd3: Any, draw: Callable[..., Tensor]) -> None:
    def stop(pipe: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = step == 3
        return tensors

    plan = tokenprune.plan(sd3, 0.5)
    with tokenprune.apply(sd3, plan):
        fresh = draw(sd3)
    with tokenprune.apply(sd3, plan):
        draw(sd3, callback_on_step_end=stop)
        assert torch.equal(draw(sd3), fresh)


def test_a_bare_transformer_goes_without(
    sd3: Any, draw: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tokenprune"), tokenprune.apply(sd3.transformer, PLAN) as handle:
        made = draw(sd3, num_inference_steps=STEPS)
        assert all(step.correction is None for step in handle.report().steps)
    assert "give apply the pipeline" in caplog.text
    with tokenprune.apply(sd3, PLAN.policy, schedule=PLAN.schedule, reuse=PLAN.reuse):
        assert torch.equal(draw(sd3, num_inference_steps=STEPS), made)
