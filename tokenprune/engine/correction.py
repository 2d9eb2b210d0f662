"""The sampler's steps since the last full one, drawn again with what the next full one shows (see `Corrector`).

A pipeline's scheduler gets a `step` of ours, which hands on to its own. What the model computed at each step is told by
`begin_step`; the sampler's state is what its attributes hold, so that any sampler can be set back and drawn again.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenprune.engine.sampler import Sampler, predicts, signal_and_noise
from tokenprune.engine.step_tracker import CallPosition
from tokenprune.ops.grid import TokenGrid, spread
from tokenprune.ops.selection import Selection
from tokenprune.ops.static_memory import version_of
from tokenprune.reports.records import StepRecord
from tokenprune.reuse.corrector import Corrector, DrawnAgain, FullStep
from tokenprune.schedule import Predicts

WATCHED_DRAWS = 3
"""Steps of a generation at which it is looked whether the sampler draws random numbers."""


@dataclass(frozen=True)
class Announced:
    """What the model computes at the step whose prediction the sampler gets next.

    Attributes:
        position: where the step stands.
        record: of the step; takes how far the latents were moved.
        full: whether it computes all tokens.
        computed: tokens that it computes [B, N]; None for all, or for none.
        grid: of the tokens.
    """

    position: CallPosition
    record: StepRecord
    full: bool
    computed: Tensor | None
    grid: TokenGrid


@dataclass(frozen=True)
class Drawn:
    """One step of the sampler.

    Attributes:
        bound: the arguments of its call.
        output: the prediction that it got, after guidance and whatever else the pipeline does.
        time: the step's timestep.
        known: where the prediction was computed, as a mask that broadcasts to it; True: everywhere, False: nowhere.
    """

    bound: inspect.BoundArguments
    output: Tensor
    time: float
    known: Tensor | bool


class Shares(NamedTuple):
    """What a prediction means at a step, and how much of the latents there is signal and noise."""

    predicts: Predicts | None
    signal: float
    noise: float


@dataclass
class Gap:
    """The steps since the last full one.

    Attributes:
        state: the sampler's attributes before the full step.
        sample: the latents of the full step.
        shares: of signal and noise in them.
        steps: the full step and those after it.
        reached: the latents after the last of them, and which version of that tensor they are.
        offset: what to add to forecasts that go out from the full step's prediction; None for nothing.
    """

    state: dict[str, Any]
    sample: Tensor
    shares: Shares
    steps: list[Drawn] = field(default_factory=list)
    reached: tuple[Tensor, int] | None = None
    offset: Tensor | None = None

    def leads_to(self, sample: Tensor) -> bool:
        """Whether these are the latents that the steps led to, and the pipeline has not changed them since.

        Waits for the device only where they are another tensor.
        """
        if self.reached is None:
            return False
        latents, version = self.reached
        if version_of(latents) != version and not latents.is_inference():
            return False
        same = latents is sample and not latents.is_inference()
        return same or (latents.shape == sample.shape and torch.equal(latents.to(sample), sample))


class SamplerCorrection:
    """Corrects the latents of one pipeline; `put_on`, `take_off`.

    Args:
        sampler: the pipeline's.
        corrector: how.
    """

    def __init__(self, sampler: Sampler, corrector: Corrector) -> None:
        self._sampler, self._corrector = sampler, corrector
        self._step: SamplerStep | None = None
        self.forget()

    def put_on(self) -> None:
        """Give the pipeline's scheduler a `step` of ours, unless it has it."""
        scheduler = self._sampler.scheduler
        if not hasattr(scheduler, "step"):
            return
        if (
            self._step is None
            or self._step.scheduler is not scheduler
            or scheduler.__dict__.get("step") is not self._step
        ):
            self.take_off()
            self._step = scheduler.__dict__["step"] = SamplerStep(scheduler, self)
            self.forget()

    def take_off(self) -> None:
        """Give the scheduler its own again."""
        if self._step is not None and self._step.scheduler.__dict__.get("step") is self._step:
            self._step.give_back()
        self._step = None

    def forget(self) -> None:
        """Begin anew with the next full step."""
        self._gap: Gap | None = None
        self._announced: Announced | None = None
        self._calls = 0
        self._draws_noise = False

    def begin_step(
        self, position: CallPosition, record: StepRecord, selection: Selection | None, grid: TokenGrid
    ) -> None:
        """The model begins a step.

        Args:
            position: where it stands.
            record: of the step.
            selection: the tokens that it computes; None for all, or for none.
            grid: of the tokens.
        """
        if position.first_of_generation:
            self.put_on()
            self.forget()
        computed = None if selection is None else selection.mask()
        full = selection is None and record.tokens == record.num_tokens
        self._announced = Announced(position, record, full, computed, grid)

    def step(self, own: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """What the scheduler's own step gives, of latents and a prediction that are corrected where they can be."""
        announced, self._announced = self._announced, None
        output: Any = bound.arguments.get("model_output")
        sample: Any = bound.arguments.get("sample")
        step, usable = self._step, isinstance(output, Tensor) and isinstance(sample, Tensor) and not self._draws_noise
        if announced is None or step is None or not usable:
            self._gap = None
            return own(*bound.args, **bound.kwargs)
        scheduler = step.scheduler
        if announced.full:
            shares = self._shares(scheduler, announced.position, output.shape == sample.shape)
            sample, output, offset = self._corrected(own, announced, output, sample, shares)
            self._gap = Gap(_state(scheduler), sample, shares, offset=offset)
        elif self._gap is not None and self._gap.offset is not None:
            output = self._shifted(announced, output, self._gap.offset)
        drawn = self._drawn(announced, _with(bound, output, sample), output)
        before = self._random_state(bound)
        result = own(*drawn.bound.args, **drawn.bound.kwargs)
        if before is not None and before != self._random_state(bound):
            self._draws_noise, self._gap = True, None
        if self._gap is not None:
            self._gap.steps.append(drawn)
            latents = _latents(result)
            self._gap.reached = latents, version_of(latents)
        return result

    def _corrected(
        self, own: Callable[..., Any], announced: Announced, output: Tensor, sample: Tensor, shares: Shares
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The latents of a full step, its prediction, and what forecasts from it have to add."""
        gap, step = self._gap, self._step
        if gap is None or step is None or len(gap.steps) < 2 or not gap.leads_to(sample):
            return sample, output, None
        if gap.sample.shape != sample.shape or output.shape != gap.steps[0].output.shape:
            return sample, output, None
        time = announced.position.time

        def draw_again(last: Tensor) -> Tensor:
            _restore(step.scheduler, gap.state)
            latents = gap.sample
            for drawn, value in zip(gap.steps, _interpolated(gap.steps, last, time), strict=True):
                bound = _with(drawn.bound, value.to(output.dtype), latents)
                latents = _latents(own(*bound.args, **bound.kwargs))
            return latents.float()

        again = draw_again(output.float())
        found = DrawnAgain(
            announced.position.step,
            announced.position.level,
            FullStep(gap.sample, gap.steps[0].output, gap.shares.signal, gap.shares.noise),
            FullStep(sample, output, shares.signal, shares.noise),
            again - sample.float(),
            shares.predicts,
            lambda change: draw_again(output.float() + change) - again,
        )
        way, offset = self._corrector.correct(found)
        offset = offset if output.shape == sample.shape else None
        if offset is not None:
            draw_again(output.float() + offset)  # what a multistep sampler remembers, too
        announced.record.correction = way.square().mean().sqrt()
        corrected = (sample.float() + way).to(sample.dtype)
        return corrected, output if offset is None else (output.float() + offset).to(output.dtype), offset

    def _shares(self, scheduler: Any, position: CallPosition, alike: bool) -> Shares:
        """Those of a step; nothing where its prediction has another shape than the latents."""
        meaning, remaining, times = predicts(scheduler), position.remaining, self._sampler.times
        if meaning is None or remaining is None or not 0 < remaining <= len(times) or not alike:
            return Shares(None, 0.0, 0.0)
        return Shares(meaning, *signal_and_noise(scheduler, times[len(times) - remaining]))

    def _drawn(self, announced: Announced, bound: inspect.BoundArguments, output: Tensor) -> Drawn:
        known: Tensor | bool = announced.full
        if announced.computed is not None:
            found = spread(announced.computed, announced.grid, output.shape)
            known = False if found is None else found
        return Drawn(bound, output, announced.position.time, known)

    def _shifted(self, announced: Announced, output: Tensor, offset: Tensor) -> Tensor:
        """A prediction with what its forecast elements have to add."""
        if output.shape != offset.shape:
            return output
        moved = (output.float() + offset).to(output.dtype)
        if announced.computed is None:
            return moved
        computed = spread(announced.computed, announced.grid, output.shape)
        return output if computed is None else torch.where(computed, output, moved)

    def _random_state(self, bound: inspect.BoundArguments) -> list[bytes] | None:
        """Where the random numbers stand that a sampler can draw from; None if that is not looked at any more."""
        if self._calls >= 2 * WATCHED_DRAWS:
            return None
        self._calls += 1
        given = bound.arguments.get("generator")
        generators = [each for each in (given if isinstance(given, list) else [given]) if each is not None]
        states = [torch.get_rng_state(), *(generator.get_state() for generator in generators)]
        output: Tensor = bound.arguments["model_output"]
        if output.is_cuda:
            states.append(torch.cuda.get_rng_state(output.device))
        return [state.numpy().tobytes() for state in states]


class SamplerStep:
    """Stands in for a scheduler's `step`; a copy of the scheduler has its own.

    Args:
        scheduler: the scheduler.
        correction: takes the calls.
    """

    def __init__(self, scheduler: Any, correction: SamplerCorrection) -> None:
        self.scheduler, self._correction = scheduler, correction
        self._had_own = "step" in scheduler.__dict__
        self._own: Callable[..., Any] = scheduler.step
        self._signature = inspect.signature(self._own)
        functools.update_wrapper(self, self._own)

    def give_back(self) -> None:
        """Take this off."""
        if self._had_own:
            self.scheduler.__dict__["step"] = self._own
        else:
            del self.scheduler.__dict__["step"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The scheduler's step, corrected."""
        return self._correction.step(self._own, self._signature.bind(*args, **kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = memo.get(id(self.scheduler))
        return self._own if other is None else MethodType(type(other).step, other)

    def __reduce__(self) -> Any:
        return getattr, (self.scheduler, "step")


def _state(scheduler: Any) -> dict[str, Any]:
    """The attributes of a sampler, as they are now; it replaces them, and writes into lists, but not into tensors."""
    own = {name: value for name, value in scheduler.__dict__.items() if not isinstance(value, SamplerStep)}
    return {name: copy.copy(value) if isinstance(value, (list, dict)) else value for name, value in own.items()}


def _restore(scheduler: Any, state: Mapping[str, Any]) -> None:
    for name in [name for name in scheduler.__dict__ if name not in state and name != "step"]:
        del scheduler.__dict__[name]
    scheduler.__dict__.update(
        {name: copy.copy(value) if isinstance(value, (list, dict)) else value for name, value in state.items()}
    )


def _latents(result: Any) -> Tensor:
    found: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return found


def _with(bound: inspect.BoundArguments, output: Tensor, sample: Tensor) -> inspect.BoundArguments:
    """The same arguments with another prediction and other latents."""
    other = inspect.BoundArguments(bound.signature, bound.arguments.copy())
    other.arguments.update(model_output=output, sample=sample)
    return other


def _interpolated(steps: list[Drawn], last: Tensor, time: float) -> list[Tensor]:
    """The predictions of these steps, with those that were not computed on the line between computed ones.

    Args:
        steps: the first was computed everywhere.
        last: the prediction of the step after them, computed everywhere.
        time: of that step.
    """
    start, end = (torch.full_like(last[:, :1], when, dtype=torch.float32) for when in (steps[0].time, time))
    after = [(last, end)]
    for drawn in reversed(steps[2:]):
        after.append(_with_computed(drawn, *after[-1]))
    after.reverse()  # for each step after the first: the next value that was computed later
    value, when = steps[0].output.float(), start
    found = [value]
    for drawn, (following, then) in zip(steps[1:], after, strict=True):
        value, when = _with_computed(drawn, value, when)
        width = then - when
        share = torch.where(width == 0, 0.0, (drawn.time - when) / torch.where(width == 0, 1.0, width))
        found.append(value + share * (following - value))
    return found


def _with_computed(drawn: Drawn, value: Tensor, when: Tensor) -> tuple[Tensor, Tensor]:
    """Values and their times, with what the step computed in the place of what was known before."""
    if drawn.known is False:
        return value, when
    if drawn.known is True:
        return drawn.output.float(), torch.full_like(when, drawn.time)
    return torch.where(drawn.known, drawn.output.float(), value), torch.where(drawn.known, drawn.time, when)
