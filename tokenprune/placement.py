"""Schedules of full and skipped steps: where the full ones lie."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

from tokenprune.schedule import ForecastError, IndexSchedule, Schedule, Step


class _FullOrSkipped(Schedule):
    """Spends a share of the plain model's operations, `budget`, on full steps alone."""

    budget: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget: expected a share of the operations in (0, 1], got {self.budget}")
        if self.steps < 1:
            raise ValueError(f"steps: expected a whole number of at least 1, got {self.steps!r}")

    @property
    def skips(self) -> bool:
        """Whether the budget leaves out any step."""
        return self.budget < 1

    @property
    def computes_parts(self) -> bool:
        """Never: steps are full or skipped."""
        return False

    def _affordable(self, total: int) -> int:
        """How many of a generation's steps are full, at least one."""
        return max(1, math.floor(self.budget * total + 1e-9))

    def _total(self, step: Step) -> int:
        """How many steps its generation has."""
        return self.steps if step.remaining is None else step.index + step.remaining


class _LaidAhead(_FullOrSkipped, IndexSchedule):
    """Its full steps follow from the number of steps."""

    @abstractmethod
    def full_steps(self, total: int) -> frozenset[int]:
        """The full steps of a generation, by index."""

    def fraction(self, step: Step) -> float:
        """1 at a full step, 0 at all others."""
        return float(step.index in self.full_steps(self._total(step)))


@dataclass(frozen=True)
class PlacedSchedule(_FullOrSkipped):
    """A share of the plain model's operations, spent on full steps; all others are skipped and forecast.

    Our own; no paper. Skipping the m-th step after a full one is expected to cost r m^1.5 h: h is how far predictions
    move the latents at that step (`Step.sizes`), and r is the forecasts' error for each step that they reach ahead. How
    r changes is read off the errors at the full steps so far, as a power of the step's index. Before there are two,
    forecasts that were far off are taken to get better (diffusion predictions change fast at first), and those that
    were near to stay so. Full steps then lie such that all gaps cost the same, and as many are left as the budget
    allows. This is reckoned anew at each full step, for the gap that follows it. What is skipped at the very end counts
    four times: no later full step can correct it (`Corrector`). Where fewer than one step in five is full, full steps
    lie evenly: forecasts do not reach that far, and a step that only shows how they do is missed elsewhere. Where the
    model predicts the noise that is so from two steps in seven on, as such predictions hardly change at first.

    A generation of N steps has int(budget * N) full ones, at least one, so that the share of all operations is kept,
    not of tokens alone. All images of a batch share their full steps. The step after a full one waits for the device
    once, to read two numbers.

    Args:
        budget: share of the plain model's operations, above 0 up to 1.
        steps: number of steps to plan for where the sampler's timesteps are not known ahead.

    Raises:
        ValueError: an argument is out of its range.
    """

    GROWTH: ClassVar[float] = 1.5
    LAST_GAP: ClassVar[float] = 4.0
    STEEPEST: ClassVar[float] = 1.6
    LARGE_ERROR: ClassVar[float] = 0.3
    TRUST_IN_PRIOR: ClassVar[float] = 0.1
    MEMORY: ClassVar[float] = 0.6
    FEWEST_TO_LEARN: ClassVar[int] = 4
    LONGEST_GAP: ClassVar[float] = 5.0
    LONGEST_GAP_OF_NOISE: ClassVar[float] = 3.5
    FEWEST_STEPS: ClassVar[int] = 10

    budget: float
    steps: int = 28

    @property
    def asks_errors(self) -> bool:
        """As `skips`."""
        return self.skips

    def caution(self, steps: int) -> str | None:
        """Where steps lie too far apart to be forecast, as measured on the embedded models (docs/which-plan.md)."""
        full = self.full_steps(steps)
        if full >= steps:
            return None
        advice = "take a larger budget, let `tokenprune calibrate` fit the plan"
        if steps < self.FEWEST_STEPS:
            return (
                f"under {self!r}, pictures of fewer than {self.FEWEST_STEPS} steps change visibly: steps lie too far "
                f"apart to be forecast; {advice}, or leave such a model as it is"
            )
        if steps > full * self.LONGEST_GAP:
            return (
                f"under {self!r}, {full} of them {'is' if full == 1 else 'are'} full, less than one in "
                f"{self.LONGEST_GAP:g}: full steps lie evenly then, and step caches were nearer to the plain model in "
                f"some settings; {advice}, or compare with `tokenprune bench`"
            )
        return None

    def prunes(self, steps: int) -> bool | None:
        """Whether any of so many steps is skipped."""
        return self.full_steps(steps) < steps

    def full_steps(self, total: int) -> int:
        """How many of a generation's steps are full."""
        return self._affordable(total)

    def fraction(self, step: Step) -> float:
        """1 at a full step, 0 at all others."""
        total = self._total(step)
        allowed, made = self.full_steps(total), len(step.full)
        if made == 0:
            return 1.0
        if made >= allowed:
            return 0.0
        if total > allowed * (self.LONGEST_GAP_OF_NOISE if step.predicts == "noise" else self.LONGEST_GAP):
            return float(step.index >= made * total // allowed)
        learns = allowed >= self.FEWEST_TO_LEARN
        if learns and step.index == 1:
            return 1.0
        steepness = self.steepness(step.errors) if learns and step.errors else 0.0
        sizes = step.sizes or ()
        if len(sizes) != total:
            sizes = (1.0,) * total
        return float(step.index >= _next_full(sizes, step.full[-1], allowed - made, steepness))

    def steepness(self, errors: tuple[ForecastError, ...]) -> float:
        """p, if errors for each step ahead fall like the step's index to the power -p: least squares that forget."""
        first = errors[0]
        prior = self.STEEPEST * min(1.0, first.error / max(first.size, 1e-12) / self.LARGE_ERROR)
        points = [(math.log(e.index), math.log(max(e.error / e.gap, 1e-12))) for e in errors if e.index > 0]
        weights = [self.MEMORY**age for age in reversed(range(len(points)))]
        total = sum(weights)
        if not total:
            return prior
        mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
        mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
        both = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
        spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
        found = (self.TRUST_IN_PRIOR * prior - both) / (spread + self.TRUST_IN_PRIOR)
        return min(self.STEEPEST, max(0.0, found)) if math.isfinite(found) else prior


@lru_cache(maxsize=256)
def _next_full(sizes: tuple[float, ...], last: int, left: int, steepness: float) -> int:
    """The full step after `last`, if `left` more are allowed; as many as there are steps if none follows."""
    total = len(sizes)
    if left <= 0:
        return total
    if left >= total - 1 - last:
        return last + 1
    growth = PlacedSchedule.GROWTH

    def cost(step: int, since: int) -> float:
        pace = (max(step, 1) / max(last, 1)) ** -steepness
        return pace * sizes[step] * float(step - since) ** growth

    low, high = 0.0, max(sum(cost(k, last) for k in range(last + 1, total)) * PlacedSchedule.LAST_GAP, 1e-12)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if len(_placed(cost, middle, last, total, left)) > left else (low, middle)
    places = _placed(cost, high, last, total, left)
    return places[0] if places else total


def _placed(cost: Callable[[int, int], float], allowed: float, last: int, total: int, most: int) -> list[int]:
    """Full steps after `last` such that no gap costs more than what is allowed; breaks off beyond `most` of them."""
    found: list[int] = []
    while len(found) <= most:
        spent, step = 0.0, last + 1
        while step < total and (spent := spent + cost(step, last)) <= allowed:
            step += 1
        if step >= total and spent * PlacedSchedule.LAST_GAP <= allowed:
            break
        last = min(step, total - 1)
        found.append(last)
        if last == total - 1:
            break
    return found


@dataclass(frozen=True)
class EvenSchedule(_LaidAhead):
    """A share of the plain model's operations: full steps at the start, then evenly; all others are skipped.

    With a linear forecast it is a step cache such as TaylorSeer's (arXiv 2503.06923), for any number of steps. A
    generation of N steps has int(budget * N) full ones, at least one. The last step is full where there are more than
    those at the start.

    Args:
        budget: share of the plain model's operations, above 0 up to 1.
        first: share of the steps that are full at the start, 0 to 1; one is at least, and no more than the budget has.
        steps: number of steps to plan for where the sampler's timesteps are not known ahead.

    Raises:
        ValueError: an argument is out of its range.
    """

    budget: float
    first: float = 0.0
    steps: int = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first <= 1:
            raise ValueError(f"first: expected a share of the steps in [0, 1], got {self.first}")

    def full_steps(self, total: int) -> frozenset[int]:
        """The full steps of a generation, by index."""
        allowed = self._affordable(total)
        first = min(allowed, max(1, round(self.first * total)))
        rest, left = allowed - first, total - first
        return frozenset([*range(first), *(first - 1 + round((i + 1) * left / rest) for i in range(rest))])


@dataclass(frozen=True)
class FixedSchedule(_LaidAhead):
    """Full steps at given places, all others skipped: what `tokenprune calibrate` finds from the plain model's steps.

    A generation of another number of steps N has int(budget * N) full ones, on the line through the given places.

    Args:
        full: indices of the full steps, rising, the first 0.
        steps: number of steps of the generation that they belong to.

    Raises:
        ValueError: the indices do not rise from 0, or go beyond the last step.
    """

    full: tuple[int, ...]
    steps: int

    def __post_init__(self) -> None:
        rising = all(before < after for before, after in pairwise(self.full))
        if not self.full or self.full[0] != 0 or not rising or self.full[-1] >= self.steps:
            raise ValueError(f"full: expected indices that rise from 0 to at most {self.steps - 1}, got {self.full}")

    @property
    def budget(self) -> float:  # type: ignore[override]  # of the others it is a setting
        """The share of the steps that are full."""
        return len(self.full) / self.steps

    def full_steps(self, total: int) -> frozenset[int]:
        """The full steps of a generation, by index."""
        if total == self.steps:
            return frozenset(self.full)
        allowed = self._affordable(total)
        there = (i * (len(self.full) - 1) / max(allowed - 1, 1) for i in range(allowed))
        places = (self._between(place) * (total - 1) / max(self.steps - 1, 1) for place in there)
        return frozenset(round(place) for place in places)

    def _between(self, place: float) -> float:
        """The index of a full step by its place among them, linear between two."""
        before = int(place)
        after = min(before + 1, len(self.full) - 1)
        return self.full[before] + (place - before) * (self.full[after] - self.full[before])
