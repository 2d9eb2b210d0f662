"""Which generation, step and guidance branch a call of the model belongs to."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.conditions import Conditions
from tokenprune.engine.sampler import Sampler
from tokenprune.engine.timestep_reader import TimestepReader
from tokenprune.errors import UnsupportedCallError
from tokenprune.ops.guidance import BranchKey, halves_agree
from tokenprune.schedule import Predicts

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
        sigmas: the noise's share of the latents at each step of the generation, falling from at most 1; None where the
            timesteps were not known at its first.
        predicts: what the sampler takes the prediction for; None for anything else, or where it is not known.
        generation: the same object for all calls of a generation, another one for each.
        adopted: at the second step, how many calls of the first turned out to be another generation's that was given
            up: the generation began after them.
    """

    step: int
    time: float
    branch: BranchKey
    first_of_generation: bool
    first_of_step: bool
    level: float = 1.0
    remaining: int | None = None
    sigmas: tuple[float, ...] | None = None
    predicts: Predicts | None = None
    adopted: int = 0
    generation: object = None


SLACK, MOST = 0.1, 0.97
"""How much further than reckoned latents may turn from a step to the next, as a sine, and how far at most."""


def turn(level: float, later: float) -> float:
    """The sine of the angle by which latents turn while the noise level falls, at most.

    Latents are x_0 cos(a) + e sin(a) up to their length, with signal and noise at right angles and as long: a is
    atan(s / (1 - s)) for rectified flows at s = level, and asin(sqrt(1 - exp(-0.1 t - 9.95 t^2))) for diffusion with
    the usual linear betas (Ho et al., arXiv 2006.11239) at t = level.
    """
    flow = (math.atan2(s, 1 - s) for s in (level, later))
    diffusion = (math.asin(math.sqrt(1 - math.exp(-0.1 * t - 9.95 * t * t))) for t in (level, later))
    return math.sin(min(math.pi / 2, max(abs(next(angles) - next(angles)) for angles in (flow, diffusion))))


class StepTracker:
    """Follows the calls of one model from step to step.

    A step is a new timestep. The same timestep again is another guidance branch of that step if it is the same
    entry of the scheduler's table, if the first step of the generation had as many calls, or if the latents are the
    same; otherwise (a second-order scheduler repeats timesteps) it is a new step. A generation starts when the noise
    level rises, when the scheduler's table, the latents' shape, dtype or device change between steps, when the first
    step comes again with other latents, and after `reset`; where the pipeline is known, when its sampler has another
    table; and when texts or other conditions that stayed the same tensors are others now, and the latents do not go on
    from the last step's. But a batch that loses or gains its second guidance half, while the time goes on, is the same
    generation with another branch.

    Args:
        time_rises: whether the timestep grows while the noise level falls.
        halves: whether a batch may hold both branches of classifier-free guidance.
        sampler: of the pipeline that calls the model, if that is known.
    """

    def __init__(self, time_rises: bool, halves: bool = True, sampler: Sampler | None = None) -> None:
        self._direction = -1.0 if time_rises else 1.0
        self._end = 1.0 if time_rises else 0.0
        self._may_hold_halves = halves
        self._sampler = sampler
        self._reader = TimestepReader()
        self.reset()

    def copied(self) -> StepTracker:
        """Where this one stands, for calls that it is not to notice."""
        other = copy.copy(self)
        other._reader, other._calls = copy.copy(self._reader), dict(self._calls)
        other._conditions = list(self._conditions)
        return other

    def renewed(self) -> StepTracker:
        """Another one that has followed no calls yet."""
        other = copy.copy(self)
        other._reader = TimestepReader()
        other.reset()
        return other

    def reset(self) -> None:
        """Forget everything: the next call starts a generation."""
        self._repeated: float | None = None  # the last timestep at which a lone step came again with other latents
        self._forget_steps()

    def _forget_steps(self) -> None:
        self._generation = object()
        self._step = -1
        self._time = 0.0
        self._first_time = 0.0
        self._sigmas: tuple[float, ...] | None = None
        self._place: int | None = None
        self._calls: dict[tuple[str, tuple[int, ...]], int] = {}
        self._signature: tuple[object, ...] = ()
        self._calls_of_first_step = 0
        self._latents: Tensor | None = None
        self._table: Tensor | None = None  # the sampler's
        self._conditions: list[Conditions] = []  # of each call of the first step, later of the last step's first call
        self._stable: set[str] = set()  # conditions that were the same tensors at the last two steps
        self._doubted = False  # whether the generation began since the latents did not go on

    def advance(
        self,
        timestep: Tensor | float | int,
        latents: Tensor,
        name: str = "",
        others: Mapping[str, Any] = MappingProxyType({}),
    ) -> CallPosition:
        """Take in the next call, and say where it stands.

        Args:
            timestep: as the model received it.
            latents: the noisy latents.
            name: what the pipeline calls the guidance branch.
            others: the model's other arguments by name.

        Raises:
            UnsupportedCallError: the timestep holds no value, or other latents come at the same timestep.
        """
        sampler_table = self._sampler.timesteps if self._sampler is not None else None
        time, place, coming, new_table = self._reader.read(timestep, sampler_table)
        shape, conditions = tuple(latents.shape), Conditions(others)
        signature = (shape, latents.dtype, latents.device)
        goes_on = True
        begun = self._step < 0 or new_table or sampler_table is not self._table
        same_step = not begun and self._same_step(time, place, name, signature, latents)
        first_of_generation = not same_step and (
            begun
            or self._direction * time > self._direction * self._time
            or (signature != self._signature and not self._same_images(signature, latents, place))
            or (self._step == 0 and time == self._time)
        )
        untold = place is None and self._table is None  # no table, of the sampler or of the call, says where it stands
        if untold and not same_step and not first_of_generation and signature == self._signature:
            goes_on = self._goes_on(time, latents, conditions)
            first_of_generation = not goes_on
        adopted = 0
        if first_of_generation:
            self._notice_turns(time, repeated=not begun and time == self._time)
            self._forget_steps()
            self._first_time, self._table, self._doubted = time, sampler_table, not goes_on
        if not same_step:
            adopted = self._calls_given_up(conditions) if self._step == 0 and untold else 0
            self._stable = self._conditions[adopted].shared_with(conditions) if self._conditions else set()
            self._calls_of_first_step -= adopted
            self._step += 1
            self._calls, self._conditions = {}, []
            self._latents = latents.clone()  # a copy, as a sampler may change them in place
            self._signature = signature
            self._repeated = self._repeated if self._step < 2 else None
        elif self._step == 1 and not name and signature == self._signature and not self._share_latents(latents):
            raise self._taking_turns(time)
        order = self._calls.get((name, shape), 0)
        self._calls[name, shape] = order + 1
        if self._step == 0:
            self._calls_of_first_step += 1
        if self._step == 0 or not self._conditions:
            self._conditions.append(conditions)
        self._time, self._place = time, place
        span = self._first_time - self._end
        if coming is None and self._sampler is not None and self._table is not None:
            coming = self._sampler.coming
        if self._step == 0 and not same_step:
            self._sigmas = self._sigmas_of(coming)
        return CallPosition(
            step=self._step,
            time=time,
            branch=BranchKey(order, shape, name),
            first_of_generation=first_of_generation,
            first_of_step=not same_step,
            level=(time - self._end) / span if span else 1.0,
            remaining=None if coming is None else len(coming),
            sigmas=self._sigmas,
            predicts=None if self._sampler is None else self._sampler.predicts,
            adopted=adopted,
            generation=self._generation,
        )

    def _sigmas_of(self, times: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """The noise's share at each timestep: as the sampler says, else as timesteps go from the first to no noise."""
        if times is None:
            return None
        said = None if self._sampler is None or self._table is None else self._sampler.sigmas(len(times))
        span = times[0] - self._end
        return said or (tuple((time - self._end) / span for time in times) if span else None)

    def _notice_turns(self, time: float, repeated: bool) -> None:
        """Raise where lone steps come again with other latents, at one timestep after the other."""
        if not repeated:
            return
        if self._repeated is not None and self._direction * time < self._direction * self._repeated:
            raise self._taking_turns(time)
        self._repeated = time

    @staticmethod
    def _taking_turns(time: float) -> UnsupportedCallError:
        return UnsupportedCallError(
            f"timestep {time:g}: expected the same latents in every call of a step, got others of the same shape; this "
            f"is how windows of one picture, or several generations in turns, call a model. Give each of them its own "
            f"caches: with handle.window(name): model(...), see docs/works-with.md"
        )

    def _goes_on(self, time: float, latents: Tensor, conditions: Conditions) -> bool:
        """Whether a later step's call can belong to the generation of the last one.

        Looks at the latents, which waits for the device, only where conditions are other tensors all of a sudden.
        """
        last = self._latents
        if last is None or not any(self._conditions) or (self._step == 0 and self._doubted):
            return True  # tensors that are made anew at every step say nothing
        kept = set().union(*(former.shared_with(conditions) for former in self._conditions))
        if (set(conditions) if self._step == 0 else self._stable) <= kept:
            return True
        one, other = last.flatten().double(), latents.flatten().double()
        cosine = float(one @ other / (one.norm() * other.norm()).clamp_min(1e-30))
        whole = 1.0 if max(abs(time), abs(self._first_time)) <= 1 else 1000.0
        levels = (min(1.0, abs(each - self._end) / whole) for each in (self._time, time))
        if not math.isfinite(cosine):
            return True  # a broken model's latents say nothing
        return cosine > 0 and (1 - min(1.0, cosine**2)) ** 0.5 <= min(MOST, turn(*levels) + SLACK)

    def _calls_given_up(self, conditions: Conditions) -> int:
        """How many calls of the first step were another generation's: it ended there, and began anew with a new text.

        The second step begins with the conditions that the generation's first call had.
        """
        if len(self._calls) > 1:
            return 0  # branches of names or shapes of their own
        shared = [len(former.shared_with(conditions)) for former in self._conditions]
        return shared.index(max(shared)) if shared else 0

    def _same_step(
        self, time: float, place: int | None, name: str, signature: tuple[object, ...], latents: Tensor
    ) -> bool:
        if time == self._time and name and all(name != known for known, _ in self._calls):
            return True  # a branch that says its name
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
        if self._latents is None or latents.shape != self._latents.shape:
            return False
        return torch.equal(latents.nan_to_num(), self._latents.nan_to_num())  # NaN is not equal to itself

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

    def advance(
        self,
        timestep: Tensor | float | int,
        latents: Tensor,
        name: str = "",
        others: Mapping[str, Any] = MappingProxyType({}),
    ) -> CallPosition:
        """Take in the next call."""
        self._step += 1
        branch = BranchKey(0, tuple(latents.shape))
        return CallPosition(self._step, 0.0, branch, self._step == 0, True, generation=self._generation)
