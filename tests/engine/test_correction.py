"""The sampler's steps drawn again: exact where predictions are linear in time, and never where they must not be."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from tokenprune import Corrector
from tokenprune.engine.correction import Drawn, SamplerCorrection, _interpolated
from tokenprune.engine.sampler import Sampler
from tokenprune.engine.step_tracker import CallPosition
from tokenprune.ops.guidance import BranchKey
from tokenprune.ops.selection import Selection
from tokenprune.reports.records import StepRecord

GRID, SHAPE = (3, 4), (2, 4, 6, 8)
SAMPLERS = {
    "flow, Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, Heun": FlowMatchHeunDiscreteScheduler,
    "flow, UniPC": lambda: UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "DDIM": lambda: DDIMScheduler(clip_sample=False),
    "DPM++ 2M": DPMSolverMultistepScheduler,
    "DPM++ 3M": lambda: DPMSolverMultistepScheduler(solver_order=3),
    "UniPC": UniPCMultistepScheduler,
    "Euler": EulerDiscreteScheduler,
    "Heun": HeunDiscreteScheduler,
}
Predict = Callable[[Tensor, float], Tensor]


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Pipe:
    """What has a sampler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def linear(latents: Tensor, time: float) -> Tensor:
    """A prediction that is linear in time, whatever the latents."""
    return noise(1) + time / 1000 * noise(2)


def announced(
    correction: SamplerCorrection, index: int, times: Sequence[float], count: int, chosen: Tensor | None
) -> None:
    position = CallPosition(index, times[index], BranchKey(0, SHAPE), index == 0, True, remaining=len(times) - index)
    record = StepRecord(index, times[index], count, 12, None)
    selection = None if chosen is None else Selection.from_index(chosen, 12)
    correction.begin_step(position, record, selection, GRID)


def unchanged(index: int, latents: Tensor) -> Tensor:
    """What most pipelines do to latents between steps: nothing."""
    return latents


def generate(
    scheduler: Any,
    predict: Predict,
    full: Sequence[int] | None = None,
    response: float = 0.0,
    steps: int = 10,
    between: Callable[[int, Tensor], Tensor] = unchanged,
    **arguments: Any,
) -> list[Tensor]:
    """The latents before each full step, and the last; other steps hold the prediction of the full one before."""
    pipe = Pipe(scheduler)
    correction = SamplerCorrection(Sampler(pipe), Corrector(response))
    scheduler.set_timesteps(steps)
    times = [float(time) for time in scheduler.timesteps]
    full = range(len(times)) if full is None else [index % len(times) for index in full]
    correction.put_on()
    latents, found, held = noise(0) * getattr(scheduler, "init_noise_sigma", 1.0), [], torch.zeros(())
    for index, time in enumerate(scheduler.timesteps):
        computed = index in full
        announced(correction, index, times, 12 if computed else 0, None)
        if computed:
            held = predict(latents, times[index])
            found.append(latents)
        latents = scheduler.step(held, time, latents, return_dict=False, **arguments)[0]
        latents = between(index, latents)
    correction.take_off()
    assert "step" not in scheduler.__dict__
    return [*found, latents]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("full", [(0, 3, 6, -1), (0, 1, 5, -1), (0, 4, 5, -1)])
def test_predictions_that_are_linear_in_time_are_made_good(name: str, full: tuple[int, ...]) -> None:
    """After the last full step the latents are those of the sampler with the true predictions, whatever was held."""
    make = SAMPLERS[name]
    plain, held = generate(make(), linear), generate(make(), linear, full)
    torch.testing.assert_close(held[-1], plain[-1], rtol=2e-5, atol=2e-5)
    assert (held[1] - plain[full[1]]).abs().max() > 1e-4 or full[1] == 1  # what the pipeline saw before was off


def of_noise(scheduler: Any, time: float) -> float:
    """How much a prediction of the noise answers to an error at a response of 12; latents are of size 1."""
    kept = float(scheduler.alphas_cumprod[round(time)])
    signal, noise = kept**0.5, (1 - kept) ** 0.5
    return noise**0.5 + 12 * (noise / (signal + noise)) ** 2 / 4 * signal / (signal + noise) ** 2


ANSWERS: dict[str, Callable[[Any, float], float]] = {
    "flow, Euler": lambda _, time: 12 * (time / 1000) ** 2,
    "DDIM": of_noise,
    "DPM++ 2M": of_noise,
    "UniPC": of_noise,
    "Euler": lambda scheduler, time: of_noise(scheduler, time) * float(scheduler.alphas_cumprod[round(time)]) ** 0.5,
}
"""s of a prediction that is off by s times its latents' error; Euler's latents are 1 / a as large."""


@pytest.mark.parametrize("name", ANSWERS)
def test_a_prediction_that_answers_to_the_error_of_its_latents(name: str) -> None:
    """It is linear(t) + s (x - x*): with the true s the corrected latents are nearer than with none."""
    scheduler = SAMPLERS[name]()
    plain = generate(scheduler, linear)
    stars = dict(zip(map(float, scheduler.timesteps), plain, strict=False))

    def predict(latents: Tensor, time: float) -> Tensor:
        return linear(latents, time) + ANSWERS[name](scheduler, time) * (latents - stars[time])

    errors = {}
    for response in (0.0, 12.0):
        made = generate(SAMPLERS[name](), predict, (0, 2, 4, 6, 8, 9), response)
        errors[response] = float((made[-1] - plain[-1]).square().mean())
    assert errors[12.0] < 0.1 * errors[0.0]


def test_values_between_are_those_of_the_line_through_computed_ones() -> None:
    """Element by element, against a brute-force interpolation."""
    generator = torch.Generator().manual_seed(0)
    times, values = [9.0, 7.0, 6.0, 4.0, 3.0], torch.randn(5, 1, 12, 2, generator=generator)
    known = torch.rand(5, 1, 12, 1, generator=generator) < 0.4
    steps = [Drawn(None, values[k], times[k], True if k == 0 else known[k]) for k in range(4)]  # type: ignore[arg-type]
    found = _interpolated(steps, values[4], times[4])
    for token in range(12):
        nodes = [k for k in range(5) if k in (0, 4) or bool(known[k, 0, token, 0])]
        for k in range(4):
            before = max(n for n in nodes if n <= k)
            after = min(n for n in nodes if n >= k)
            share = 0.0 if before == after else (times[k] - times[before]) / (times[after] - times[before])
            expected = values[before, 0, token] + share * (values[after, 0, token] - values[before, 0, token])
            torch.testing.assert_close(found[k][0, token], expected)


def test_tokens_that_pruned_steps_computed_keep_their_values() -> None:
    """A pruned step between two full ones that computes the first half of the tokens, truly not on the line."""

    def bent(latents: Tensor, time: float) -> Tensor:
        return linear(latents, time) + ((time - 500) / 500) ** 2 * noise(4)

    def drawn_with(values: Sequence[Tensor]) -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(3)
        latents = noise(0)
        for index, time in enumerate(scheduler.timesteps):
            latents = scheduler.step(values[index], time, latents, return_dict=False)[0]
        return latents

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    times = [float(time) for time in scheduler.timesteps]
    top = torch.zeros(SHAPE, dtype=torch.bool)
    top[:, :, :2] = True  # the first row of tokens
    first, second, third = (bent(noise(0), time) for time in times)
    share = (times[1] - times[0]) / (times[2] - times[0])
    expected = drawn_with([first, torch.where(top, second, first + share * (third - first)), third])
    correction = SamplerCorrection(Sampler(Pipe(scheduler)), Corrector(0.0))
    correction.put_on()
    latents = noise(0)
    for index, time in enumerate(scheduler.timesteps):
        chosen = torch.arange(4).expand(2, -1) if index == 1 else None
        announced(correction, index, times, 4 if index == 1 else 12, chosen)
        value = [first, torch.where(top, second, first), third][index]
        latents = scheduler.step(value, time, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, expected)


def same_as_without(make: Callable[[], Any], **changed: Any) -> None:
    full = (0, 2, 5, 9)
    torch.manual_seed(0)
    corrected = generate(make(), linear, full, **changed)
    torch.manual_seed(0)
    assert torch.equal(corrected[-1], _without(make, full, **changed))


def _without(make: Callable[[], Any], full: Sequence[int], between: Any = None, **arguments: Any) -> Tensor:
    scheduler, latents, held = make(), noise(0), torch.zeros(())
    scheduler.set_timesteps(10)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    for index, time in enumerate(scheduler.timesteps):
        held = linear(latents, float(time)) if index in full else held
        latents = scheduler.step(held, time, latents, return_dict=False, **arguments)[0]
        latents = between(index, latents) if between is not None else latents
    return latents


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (EulerAncestralDiscreteScheduler, {}),
        (lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), {}),
        (lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), {}),
        (lambda: DDIMScheduler(clip_sample=False), {"eta": 1.0}),
    ],
)
def test_samplers_that_draw_noise_are_left_alone(make: Callable[[], Any], arguments: dict[str, Any]) -> None:
    same_as_without(make, **arguments)


def test_latents_that_the_pipeline_changes_are_left_alone() -> None:
    """Inpainting puts the given picture back at each step."""

    def put_back(index: int, latents: Tensor) -> Tensor:
        latents = latents.clone()
        latents[..., :2] = noise(5)[..., :2]
        return latents

    same_as_without(FlowMatchEulerDiscreteScheduler, between=put_back)


def test_latents_that_are_changed_in_place_are_left_alone() -> None:
    def double(index: int, latents: Tensor) -> Tensor:
        return latents.mul_(1.01)

    same_as_without(FlowMatchEulerDiscreteScheduler, between=double)


def test_a_sampler_that_is_called_twice_in_a_step_is_left_alone() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    correction = SamplerCorrection(Sampler(Pipe(scheduler)), Corrector(0.0))
    correction.put_on()
    latents, times = noise(0), [float(time) for time in scheduler.timesteps]
    for index, count in enumerate((12, 0, 12)):
        announced(correction, index, times, count, None)
        before = latents
        latents = scheduler.step(noise(index), times[index], before, return_dict=False)[0]
        expected = before + (scheduler.sigmas[index + 1] - scheduler.sigmas[index]) * noise(index)
        torch.testing.assert_close(latents, expected)
        scheduler._step_index -= 1
        again = scheduler.step(noise(index), times[index], before, return_dict=False)[0]
        torch.testing.assert_close(again, expected)


def test_a_scheduler_keeps_its_signature_and_its_copies_are_plain() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    correction = SamplerCorrection(Sampler(Pipe(scheduler)), Corrector())
    correction.put_on()
    assert "eta" in inspect.signature(scheduler.step).parameters
    other = copy.deepcopy(scheduler)
    other.set_timesteps(4)
    assert other.step.__self__ is other
    other.step(noise(0), other.timesteps[0], noise(1))
    correction.take_off()
    assert "step" not in scheduler.__dict__


def test_a_scheduler_that_is_put_in_later_is_followed() -> None:
    first, second = FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler()
    pipe = Pipe(first)
    correction = SamplerCorrection(Sampler(pipe), Corrector(0.0))
    correction.put_on()
    pipe.scheduler = second
    second.set_timesteps(3)
    announced(correction, 0, [float(time) for time in second.timesteps], 12, None)
    assert "step" in second.__dict__
    assert "step" not in first.__dict__
    correction.take_off()
    assert "step" not in second.__dict__


def test_a_step_of_somebody_else_stays() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.step = theirs = scheduler.step
    correction = SamplerCorrection(Sampler(Pipe(scheduler)), Corrector())
    correction.put_on()
    assert scheduler.step is not theirs
    correction.take_off()
    assert scheduler.step is theirs
