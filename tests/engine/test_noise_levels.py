"""How much of the latents is noise at each step, as the sampler's table tells."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from tokenprune.engine.sampler import Sampler


def sampler_of(scheduler: Any, steps: int) -> Sampler:
    scheduler.set_timesteps(steps)
    return Sampler(SimpleNamespace(scheduler=scheduler))


def test_a_rectified_flow_has_its_own_sigmas() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sampler = sampler_of(scheduler, 10)
    assert sampler.sigmas(10) == pytest.approx(scheduler.sigmas[:-1].tolist())
    assert sampler.sigmas(4) == pytest.approx(scheduler.sigmas[6:-1].tolist())  # those that are left
    moved = [before - after for before, after in pairwise(scheduler.sigmas.tolist())]
    assert sampler.sizes(10) == pytest.approx(moved)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_noise_is_counted_against_the_signal(kind: Any) -> None:
    scheduler = kind(timestep_spacing="linspace")
    sampler = sampler_of(scheduler, 12)
    kept = scheduler.alphas_cumprod[scheduler.timesteps.long()]
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    assert sampler.sigmas(12) == pytest.approx((noise / (signal + noise)).tolist())


def test_latents_of_another_size_have_the_same_noise_levels_and_ways() -> None:
    """Euler's method scales latents by 1 / a where DDIM does not; the same timesteps are the same noise levels."""
    one = sampler_of(DDIMScheduler(timestep_spacing="linspace", set_alpha_to_one=True), 12)
    other = sampler_of(EulerDiscreteScheduler(timestep_spacing="linspace"), 12)
    assert other.times == pytest.approx(one.times, abs=0.5)
    assert other.sigmas(12) == pytest.approx(one.sigmas(12), abs=1e-3)
    assert other.sizes(12) == pytest.approx(one.sizes(12), abs=1e-3)


def test_a_sampler_that_does_not_say_has_none() -> None:
    assert Sampler(SimpleNamespace()).sigmas(1) is None
    scheduler = DDIMScheduler(prediction_type="sample")
    sampler = sampler_of(scheduler, 5)
    assert sampler.sigmas(5) is sampler.sizes(5) is None
    assert sampler_of(DDIMScheduler(), 5).sigmas(6) is None


def test_ways_are_those_of_a_step() -> None:
    """DDIM moves latents by the size of the step, for a prediction of size 1 of pure noise with nothing behind it."""
    scheduler = DDIMScheduler(timestep_spacing="leading", clip_sample=False)
    sampler = sampler_of(scheduler, 8)
    sizes = sampler.sizes(8)
    assert sizes is not None
    for size, time in zip(sizes[:-1], scheduler.timesteps[:-1], strict=True):
        still = scheduler.step(torch.zeros(1), time, torch.zeros(1)).prev_sample
        moved = scheduler.step(torch.ones(1), time, torch.zeros(1)).prev_sample
        assert size == pytest.approx(abs(float(moved - still)), rel=1e-3)
