"""Which generation, step and guidance branch a call of the model belongs to."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.errors import UnsupportedCallError
from tokenprune.ops.guidance import BranchKey, halves_agree
from tokenprune.ops.static_memory import version_of

MOST_BRANCHES = 4
"""Guidance calls of one step at most; the same first step more often than that is restarted generations."""


@dataclass(frozen=True)
class CallPosition:
    """Where a call stands.

    Attributes:
        step: index of the step in its generation, from 0.
        time: timestep as the model received it.
        branch: the guidance branch.
        first_of_generation: whether a generation begins with this call.
        first_of_step: whether a step begins with this call.
        level: noise level relative to the generation's first, from 1 down to 0.
        remaining: steps left, this one included; None where the timesteps are not known ahead.
    """

    step: int
    time: float
    branch: BranchKey
    first_of_generation: bool
    first_of_step: bool
    level: float = 1.0
    remaining: int | None = None


class TimestepReader:
    """Reads timesteps without waiting for the device more than once per generation.

    Schedulers keep a table of timesteps and hand out views of it. The table is read once; a later view of the same
    table is recognised by its address. Holding on to the table keeps that address from being used again.
    """

    def __init__(self) -> None:
        self._table: Tensor | None = None
        self._version = 0
        self._values: list[float] = []

    @property
    def entries(self) -> int:
        """How many timesteps the table holds."""
        return len(self._values)

    def read(self, timestep: Tensor | float | int) -> tuple[float, int | None, bool]:
        """The timestep, its place in its table (None outside a table), and whether that table is a new one."""
        if not isinstance(timestep, Tensor):
            return float(timestep), None, False
        if timestep.numel() == 0:
            raise UnsupportedCallError("timestep: expected at least one value, got an empty tensor")
        storage = timestep.untyped_storage()
        entries = storage.nbytes() // timestep.element_size()
        single = timestep.numel() == 1 or all(stride == 0 for stride in timestep.stride())
        if not single or entries < 2:
            return float(timestep.detach().flatten().max()), None, False
        known = self._table is not None and (
            self._table.untyped_storage().data_ptr() == storage.data_ptr()
            and self._table.device == timestep.device
            and self._table.dtype == timestep.dtype
            and self._version == version_of(timestep)
        )
        if not known:
            self._table = torch.empty(0, dtype=timestep.dtype, device=timestep.device).set_(storage)
            self._version = version_of(timestep)
            self._values = [float(value) for value in self._table.tolist()]
        place = int(timestep.storage_offset())
        return self._values[place], place, not known


class StepTracker:
    """Follows the calls of one model from step to step.

    A step is a new timestep. The same timestep again is another guidance branch of that step if it is the same
    entry of the scheduler's table, if the first step of the generation had as many calls, or if the latents are the
    same; otherwise (a second-order scheduler repeats timesteps) it is a new step. A generation starts when the noise
    level rises, when the scheduler's table, the latents' shape, dtype or device change between steps, when the first
    step comes again with other latents, and after `reset`. But a batch that loses or gains its second guidance half,
    while the time goes on, is the same generation with another branch.

    Args:
        time_rises: whether the timestep grows while the noise level falls.
        halves: whether a batch may hold both branches of classifier-free guidance.
    """

    def __init__(self, time_rises: bool, halves: bool = True) -> None:
        self._direction = -1.0 if time_rises else 1.0
        self._end = 1.0 if time_rises else 0.0
        self._may_hold_halves = halves
        self._reader = TimestepReader()
        self.reset()

    def copied(self) -> StepTracker:
        """Where this one stands, for calls that it is not to notice."""
        other = copy.copy(self)
        other._reader, other._calls = copy.copy(self._reader), dict(self._calls)
        return other

    def renewed(self) -> StepTracker:
        """Another one that has followed no calls yet."""
        other = copy.copy(self)
        other._reader = TimestepReader()
        other.reset()
        return other

    def reset(self) -> None:
        """Forget everything: the next call starts a generation."""
        self._step = -1
        self._time = 0.0
        self._first_time = 0.0
        self._place: int | None = None
        self._calls: dict[tuple[str, tuple[int, ...]], int] = {}
        self._signature: tuple[object, ...] = ()
        self._calls_of_first_step = 0
        self._latents: Tensor | None = None

    def advance(self, timestep: Tensor | float | int, latents: Tensor, name: str = "") -> CallPosition:
        """Take in the next call, under the name that the pipeline gives its branch, and say where it stands.

        Raises:
            UnsupportedCallError: the timestep holds no value.
        """
        time, place, new_table = self._reader.read(timestep)
        shape = tuple(latents.shape)
        signature = (shape, latents.dtype, latents.device)
        same_step = self._step >= 0 and not new_table and self._same_step(time, place, signature, latents)
        first_of_generation = not same_step and (
            self._step < 0
            or new_table
            or self._direction * time > self._direction * self._time
            or (signature != self._signature and not self._same_images(signature, latents, place))
            or (self._step == 0 and time == self._time)
        )
        if first_of_generation:
            self.reset()
            self._first_time = time
        if not same_step:
            self._step += 1
            self._calls = {}
            # Without a table they tell branches from steps: a copy, as a sampler may change them in place.
            self._latents = latents if place is not None else latents.clone()
            self._signature = signature
        order = self._calls.get((name, shape), 0)
        self._calls[name, shape] = order + 1
        if self._step == 0:
            self._calls_of_first_step += 1
        self._time, self._place = time, place
        span = self._first_time - self._end
        return CallPosition(
            step=self._step,
            time=time,
            branch=BranchKey(order, shape, name),
            first_of_generation=first_of_generation,
            first_of_step=not same_step,
            level=(time - self._end) / span if span else 1.0,
            remaining=None if place is None else self._reader.entries - place,
        )

    def _same_step(self, time: float, place: int | None, signature: tuple[object, ...], latents: Tensor) -> bool:
        if self._step == 0 and signature == self._signature:
            # Guidance branches of a step share their latents; other latents are another, restarted generation.
            again = time == self._time and self._calls_of_first_step < MOST_BRANCHES
            return again and self._share_latents(latents)
        if place is not None and self._place is not None:
            return place == self._place
        if time != self._time:
            return False
        if signature != self._signature:
            return signature[1:] == self._signature[1:] and self._step > 0
        return sum(self._calls.values()) < self._calls_of_first_step or self._share_latents(latents)

    def _share_latents(self, latents: Tensor) -> bool:
        return self._latents is not None and torch.equal(latents, self._latents)

    def _same_images(self, signature: tuple[object, ...], latents: Tensor, place: int | None) -> bool:
        """Whether a batch of another size holds the images of the last step's: with, or without, a guidance half.

        Or one of less precision, while the table of timesteps goes on: under autocast samplers take over that of the
        model's predictions.
        """
        last = self._latents
        if last is not None and signature[::2] == self._signature[::2]:
            return place is not None and self._place is not None and latents.dtype.itemsize < last.dtype.itemsize
        if last is None or not self._may_hold_halves or signature[1:] != self._signature[1:]:
            return False
        if last.ndim == 0 or latents.shape[1:] != last.shape[1:]:
            return False
        more, fewer = sorted((latents, last), key=len, reverse=True)
        return len(more) == 2 * len(fewer) and halves_agree(more)


class OneGeneration(StepTracker):
    """Takes every call for the next step of one generation, without looking at its timestep."""

    def advance(self, timestep: Tensor | float | int, latents: Tensor, name: str = "") -> CallPosition:
        """Take in the next call."""
        self._step += 1
        return CallPosition(self._step, 0.0, BranchKey(0, tuple(latents.shape)), self._step == 0, True)
