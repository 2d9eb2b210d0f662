"""How many tokens each step computes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal, TypeAlias

from tokenprune.interpolation import interpolated
from tokenprune.setting_types import Settings

Predicts: TypeAlias = Literal["noise", "velocity"]
"""What a model's prediction means to its sampler; the velocity is that of a rectified flow."""


@dataclass(frozen=True)
class ForecastError:
    """By how much the forecast of a full step's prediction was off: what skipping that step would have cost.

    Attributes:
        index: index of the full step.
        gap: steps since the full step before it.
        error: how far the forecast was off: the length of that for each token, as the root mean square over all tokens
            and images, after guidance.
        size: the same of the prediction itself.
    """

    index: int
    gap: int
    error: float
    size: float


@dataclass(frozen=True)
class Step:
    """Where a step stands in its generation.

    Attributes:
        index: index of the step, from 0.
        time: timestep as the model receives it.
        level: noise level relative to the generation's first, from 1 down to 0.
        remaining: steps left, this one included; None where the sampler's timesteps are not known ahead.
        sigmas: the noise's share of the latents at each step of the generation, falling: s / (a + s) where latents are
            a x + s e, x without noise and e the noise; None where that is not known ahead.
        full: the full steps so far, by index.
        errors: of the forecasts at the full steps after the first, for schedules that ask for them.
        predicts: what the sampler takes the model's prediction for: the noise, or the velocity of a rectified flow;
            None for anything else, or where it is not known.
    """

    index: int
    time: float
    level: float
    remaining: int | None
    sigmas: tuple[float, ...] | None = None
    full: tuple[int, ...] = ()
    errors: tuple[ForecastError, ...] = ()
    predicts: Predicts | None = None


class Schedule(Settings, ABC):
    """A fraction of the image tokens for every step of a generation.

    One whose fractions depend on nothing but index and remaining steps may derive from `IndexSchedule` instead.
    """

    @abstractmethod
    def fraction(self, step: Step) -> float:
        """Fraction of the image tokens computed, 0 to 1: 1 is a full step, 0 skips the model and forecasts all."""

    @property
    def skips(self) -> bool:
        """Whether any fraction can be 0."""
        return False

    @property
    def computes_parts(self) -> bool:
        """Whether any step may compute some tokens, but not all: keys and values are kept for those steps alone."""
        return True

    @property
    def keeps_keys(self) -> bool:
        """Whether full steps keep keys and values; no step needs them where all are full or skipped."""
        return self.computes_parts or not self.skips

    @property
    def asks_errors(self) -> bool:
        """Whether it goes by `Step.errors`: the step after a full one then waits for the device."""
        return False

    def caution(self, steps: int) -> str | None:
        """What is known to go badly in a generation of so many steps, and what to do; None for nothing. It is told."""
        return None

    @property
    def holds_text(self) -> bool:
        """Whether `computes_text` can be False."""
        return False

    def computes_text(self, step: Step, age: int) -> bool:
        """Whether a pruned step computes the text tokens of joint sequences, too; full ones always do.

        If not, their keys and values are held. Only models whose map has `text_inputs` can do that.

        Args:
            step: where it stands.
            age: how many steps ago text tokens were last computed, 1 at the step after a full one.
        """
        return True

    def count(self, step: Step, num_tokens: int) -> int:
        """How many of N = num_tokens tokens are computed: int(fraction * N), at least 1 unless the fraction is 0."""
        fraction = self.fraction(step)
        if fraction >= 1:
            return num_tokens
        return max(1, int(fraction * num_tokens)) if fraction > 0 else 0

    def may_prune_after(self, step: Step) -> bool:
        """Whether the step after this one may compute fewer tokens than all; True where that cannot be told.

        What a policy has to find out at a full step, but needs at a pruned one alone, is not found out where this is
        False. Whoever says so and prunes after all gets one more full step first.
        """
        return step.remaining != 1

    def prunes(self, steps: int) -> bool | None:
        """Whether a generation of so many steps computes fewer tokens than all at one; None where that is not known."""
        return None


LONG = 1000
"""Steps of a generation that prunes something if its schedule means to prune at all."""


def steps_needed(schedule: Schedule, more_than: int) -> int | None:
    """How many steps, more than so many, a generation needs to prune anything; None where none is long enough."""
    return next((total for total in range(more_than + 1, LONG + 1) if schedule.prunes(total)), None)


def tokens_at(schedule: Schedule, step: Step, num_tokens: int, least: int = 1, multiple: int = 1) -> int:
    """How many of N = num_tokens tokens a step computes.

    Args:
        schedule: says how many it should.
        step: the step.
        num_tokens: N.
        least: fewer than these a model cannot compute, but none.
        multiple: it computes a multiple of this, rounded up, or all.
    """
    count = schedule.count(step, num_tokens)
    return min(multiple * math.ceil(max(count, least) / multiple), num_tokens) if count > 0 else 0


def rehearsed(schedule: Schedule, steps: int) -> Iterator[Step]:
    """The steps of a generation where the noise level falls evenly from 1 and all forecasts are as good."""
    full: list[int] = []
    errors: list[ForecastError] = []
    levels = tuple(1 - index / steps for index in range(steps))
    for index, level in enumerate(levels):
        step = Step(index, 1000 * level, level, steps - index, levels, tuple(full), tuple(errors))
        yield step
        if schedule.asks_errors and schedule.fraction(step) >= 1:
            errors += [ForecastError(index, index - full[-1], 0.01 * (index - full[-1]), 1.0)] if full else []
            full.append(index)


class IndexSchedule(Schedule):
    """A schedule whose fractions depend on nothing but what is known before the first step: indices, noise levels."""

    def may_prune_after(self, step: Step) -> bool:
        """Whether there is a next step, and its fraction is below 1."""
        remaining = None if step.remaining is None else step.remaining - 1
        coming = replace(step, index=step.index + 1, remaining=remaining)
        return remaining != 0 and self.fraction(coming) < 1

    def prunes(self, steps: int) -> bool | None:
        """Whether any step's fraction is below 1."""
        return any(self.fraction(Step(index, 0.0, 1.0, steps - index)) < 1 for index in range(steps))


@dataclass(frozen=True)
class WarmupSchedule(IndexSchedule):
    """Full steps first, then a constant fraction: the schedule of CAT Pruning (arXiv 2502.00433).

    Args:
        alpha: fraction of image tokens computed at a pruned step, above 0 up to 1.
        warmup_steps: full steps at the start of each generation, at least 1.
        last_full: full steps at its end; only where the sampler's timesteps are known ahead.

    Raises:
        ValueError: an argument is out of its range.
    """

    alpha: float
    warmup_steps: int
    last_full: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: expected a fraction of image tokens in (0, 1], got {self.alpha}")
        _check_whole(self, warmup_steps=1, last_full=0)

    def fraction(self, step: Step) -> float:
        """1 during the warm-up and at the end, alpha between."""
        return 1.0 if step.index < self.warmup_steps or _at_end(step, self.last_full) else self.alpha


@dataclass(frozen=True)
class RefreshSchedule(IndexSchedule):
    """A full step every few steps, a fraction of the tokens (or none) between.

    With alpha = 0 this is a step cache such as TaylorSeer's (arXiv 2503.06923), with a forecast as `Reuse`.

    Args:
        every: a full step at every so-many steps, at least 1 (1: all).
        alpha: fraction of image tokens computed at the steps between, 0 up to 1.
        warmup_steps: full steps at the start of each generation, at least 1.
        last_full: full steps at its end; only where the sampler's timesteps are known ahead.

    Raises:
        ValueError: an argument is out of its range.
    """

    every: int
    alpha: float = 0.0
    warmup_steps: int = 1
    last_full: int = 0

    def __post_init__(self) -> None:
        _check_fraction("alpha", self.alpha)
        _check_whole(self, every=1, warmup_steps=1, last_full=0)

    def fraction(self, step: Step) -> float:
        """1 during the warm-up, at every `every`-th step after its last and at the end; alpha between."""
        since_warmup = step.index - self.warmup_steps + 1
        full = since_warmup <= 0 or since_warmup % self.every == 0 or _at_end(step, self.last_full)
        return 1.0 if full else self.alpha

    @property
    def skips(self) -> bool:
        """Whether alpha is 0."""
        return self.alpha == 0 and self.every > 1

    @property
    def computes_parts(self) -> bool:
        """Whether alpha is between 0 and 1."""
        return 0 < self.alpha < 1


@dataclass(frozen=True)
class BudgetSchedule(IndexSchedule):
    """A share of the plain model's token computations, whatever the number of steps.

    Full steps first, then a full step at regular distances, and between them the fraction that brings the whole
    generation to its budget. Where that would leave less than `LEAST` of the tokens for the steps between, full steps
    after the warm-up are taken further apart, then left out, then the warm-up is cut.

    Args:
        budget: share of the token computations of the plain model with as many steps, above 0 up to 1.
        warmup: fraction of the steps that are full at the start, 0 to 1.
        least_warmup: full steps at the start at least, where the budget allows; forecasts go wrong without a few.
        every: distance of the full steps after the warm-up; None for none.
        steps: number of steps to plan for where the sampler's timesteps are not known ahead.

    Raises:
        ValueError: an argument is out of its range.
    """

    LEAST: ClassVar[float] = 0.05

    budget: float
    warmup: float = 0.18
    least_warmup: int = 4
    every: int | None = 3
    steps: int = 28

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget: expected a share of token computations in (0, 1], got {self.budget}")
        _check_fraction("warmup", self.warmup)
        _check_whole(self, steps=1, least_warmup=1, **({} if self.every is None else {"every": 1}))

    def fraction(self, step: Step) -> float:
        """1 at a full step, the same fraction at all others."""
        total = self.steps if step.remaining is None else step.index + step.remaining
        fractions = self.fractions(total)
        return fractions[min(step.index, total - 1)]

    def fractions(self, total: int) -> tuple[float, ...]:
        """The fractions of all steps of a generation of `total`."""
        return _budget_fractions(self, total)


@lru_cache(maxsize=64)
def _budget_fractions(schedule: BudgetSchedule, total: int) -> tuple[float, ...]:
    warm = min(total, max(schedule.least_warmup, round(schedule.warmup * total)))
    distances = [] if schedule.every is None else range(schedule.every, total)
    for first in range(warm, 0, -1):
        for distance in (*distances, total):
            full = [i < first or (i - first + 1) % distance == 0 for i in range(total)]
            rest = total - sum(full)
            left = schedule.budget * total - sum(full)
            if left >= schedule.LEAST * rest:
                return tuple(1.0 if is_full else left / rest for is_full in full)
    return (1.0, *[schedule.LEAST] * (total - 1))


@dataclass(frozen=True)
class ListSchedule(IndexSchedule):
    """One fraction for each step; steps beyond the list repeat its last.

    Args:
        fractions: fractions of image tokens, 0 to 1; the first must be 1.

    Raises:
        ValueError: the list is empty, does not start with 1, or holds a number outside 0 to 1.
    """

    fractions: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.fractions or self.fractions[0] != 1:
            raise ValueError(f"fractions: expected a list that starts with a full step (1), got {self.fractions}")
        for fraction in self.fractions:
            _check_fraction("fractions", fraction)

    def fraction(self, step: Step) -> float:
        """The fraction at the step's index."""
        return self.fractions[min(step.index, len(self.fractions) - 1)]

    @property
    def skips(self) -> bool:
        """Whether the list holds a 0."""
        return 0 in self.fractions

    @property
    def computes_parts(self) -> bool:
        """Whether the list holds a fraction between 0 and 1."""
        return any(0 < fraction < 1 for fraction in self.fractions)


@dataclass(frozen=True)
class LevelSchedule(Schedule):
    """Fractions by noise level, linear between given points, so that one schedule serves any number of steps.

    Args:
        points: pairs (level, fraction), levels falling from 1 to 0; the noise level is relative to the first step's.
        warmup_steps: full steps at the start of each generation, at least 1.

    Raises:
        ValueError: fewer than two points, levels that do not fall from 1 to 0, or a fraction outside 0 to 1.
    """

    points: tuple[tuple[float, float], ...]
    warmup_steps: int = 1

    def __post_init__(self) -> None:
        levels = [level for level, _ in self.points]
        if len(levels) < 2 or levels != sorted(levels, reverse=True) or (levels[0], levels[-1]) != (1, 0):
            raise ValueError(f"points: expected levels that fall from 1 to 0, got {levels}")
        for _, fraction in self.points:
            _check_fraction("points", fraction)
        _check_whole(self, warmup_steps=1)

    def fraction(self, step: Step) -> float:
        """1 during the warm-up, then the value of the line through the points at the step's level."""
        if step.index < self.warmup_steps:
            return 1.0
        levels, fractions = zip(*self.points, strict=True)
        return interpolated(-step.level, [-level for level in levels], fractions)

    def may_prune_after(self, step: Step) -> bool:
        """Whether there is a next step after the warm-up, as its level is not known."""
        return super().may_prune_after(step) and step.index + 1 >= self.warmup_steps

    def prunes(self, steps: int) -> bool | None:
        """False where all steps belong to the warm-up, or all fractions are 1; else it depends on their levels."""
        whole = steps <= self.warmup_steps or all(fraction == 1 for _, fraction in self.points)
        return False if whole else None

    @property
    def skips(self) -> bool:
        """Whether a point's fraction is 0."""
        return any(fraction == 0 for _, fraction in self.points)


class CountSchedule(Schedule):
    """Numbers of tokens as they are given, for measurements and checks; plan files cannot name it.

    Args:
        counts: how many tokens each step computes; None is all.
        held: steps, by index, that compute no text tokens.
    """

    def __init__(self, counts: Sequence[int | None], held: Collection[int] = ()) -> None:
        self._counts, self._held = counts, held

    @property
    def holds_text(self) -> bool:
        """Whether there are such steps."""
        return bool(self._held)

    def computes_text(self, step: Step, age: int) -> bool:
        """Whether the step is none of them."""
        return step.index not in self._held

    def fraction(self, step: Step) -> float:
        """Not known: counts are given directly."""
        raise NotImplementedError("counts are given directly")

    def count(self, step: Step, num_tokens: int) -> int:
        """The step's count."""
        count = self._counts[step.index]
        return num_tokens if count is None else count


def _at_end(step: Step, last_full: int) -> bool:
    return step.remaining is not None and step.remaining <= last_full


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a fraction of image tokens in [0, 1], got {value}")


def _check_whole(schedule: Schedule, **least: int) -> None:
    for name, low in least.items():
        value = getattr(schedule, name)
        if value < low:
            raise ValueError(f"{name}: expected a whole number of at least {low}, got {value!r}")
