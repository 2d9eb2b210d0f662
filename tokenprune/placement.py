"""Schedules of full and skipped steps: where the full ones lie."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import ClassVar

from tokenprune.interpolation import interpolated
from tokenprune.schedule import IndexSchedule, Step


class _FullOrSkipped(IndexSchedule):
    """Spends a share of the plain model's operations, `budget`, on full steps alone, laid ahead."""

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

    def affordable(self, total: int) -> int:
        """How many of a generation's steps are full, at least one."""
        return max(1, math.floor(self.budget * total + 1e-9))

    def prunes(self, steps: int) -> bool | None:
        """Whether any of so many steps is skipped."""
        return self.affordable(steps) < steps

    @abstractmethod
    def full_steps(self, total: int, sigmas: tuple[float, ...] | None = None) -> frozenset[int]:
        """The full steps of a generation, by index.

        Args:
            total: how many steps it has.
            sigmas: the noise's share of the latents at each of them, falling from at most 1; None where that is not
                known.
        """

    def fraction(self, step: Step) -> float:
        """1 at a full step, 0 at all others."""
        total = self.steps if step.remaining is None else step.index + step.remaining
        return float(step.index in self.full_steps(total, step.sigmas))


@dataclass(frozen=True)
class PlacedSchedule(_FullOrSkipped):
    """A share of the plain model's operations, spent on full steps by the noise level; all others are skipped.

    Our own; no paper. Where full steps serve best hardly depends on the model: for each of nine cases on shapes-sd3
    (guidance 4, 7 and 12, two noise schedules; 50, 36 and 25 % of the steps full), a dynamic programme found the places
    that leave least of the error (`tokenprune.bench.tuning.placing`). A tenth, two tenths, ... of the full steps were
    spent when sigma, the noise's share of the latents, had fallen to 0.98, 0.95, ...: the mean over the cases is
    `LEVELS`. At each of them 0, 0.1, 0.2, ... of the way lies behind, linear between two. Full steps are laid such that
    the gaps between them are the most even by that measure: the sum of their third powers is the least. A generation
    that begins below sigma = 1 spends its full steps on what is left of the way.
    `python -m tokenprune.bench.studies.best_places` measures the table anew, and that of other models.

    A generation of N steps has int(budget * N) full ones, at least one, so that the share of all operations is kept,
    not of tokens alone. The places are known before the first step, the same for every picture, and nothing waits for
    the device.

    Args:
        budget: share of the plain model's operations, above 0 up to 1.
        steps: number of steps to plan for where the sampler's timesteps are not known ahead; sigma is then taken to
            fall evenly.

    Raises:
        ValueError: an argument is out of its range.
    """

    LEVELS: ClassVar[tuple[float, ...]] = (1.0, 0.98, 0.95, 0.91, 0.85, 0.77, 0.65, 0.5, 0.32, 0.14, 0.0)
    FEWEST_STEPS: ClassVar[int] = 10

    budget: float
    steps: int = 28

    def caution(self, steps: int) -> str | None:
        """Where steps lie too far apart to be forecast, as measured on the embedded models (docs/which-plan.md)."""
        if steps >= self.FEWEST_STEPS or self.affordable(steps) >= steps:
            return None
        return (
            f"under {self!r}, pictures of fewer than {self.FEWEST_STEPS} steps change visibly: steps lie too far "
            "apart to be forecast; take a larger budget, let `tokenprune calibrate` fit the plan, or leave such a "
            "model as it is"
        )

    def full_steps(self, total: int, sigmas: tuple[float, ...] | None = None) -> frozenset[int]:
        """The full steps of a generation, by index; noise that is not known is taken to fall evenly from 1."""
        if sigmas is None or len(sigmas) != total:
            sigmas = tuple(1 - index / total for index in range(total))
        return _laid(sigmas, self.affordable(total), self.LEVELS)


@lru_cache(maxsize=256)
def _laid(sigmas: tuple[float, ...], full: int, levels: tuple[float, ...]) -> frozenset[int]:
    """So many steps with gaps that are even by the way through a table of noise levels."""
    rising = [-level for level in levels]
    tenths = [index / (len(levels) - 1) for index in range(len(levels))]
    places = [interpolated(-sigma, rising, tenths) for sigma in (*sigmas, 0.0)]
    ways = (abs(later - place) for place, later in pairwise(places))
    return _evenly(list(accumulate(ways, initial=0.0)), full)


def _evenly(passed: Sequence[float], full: int) -> frozenset[int]:
    """So many of N steps, the first among them, such that the sum of the gaps' third powers is the least.

    A line through two values of a smooth curve misses it by the third power of the gap, summed over what lies between.
    By dynamic programming: for each step, the last full one on the cheapest way to it, with one full step more each
    time. As third powers are convex, that one lies between those of the same step with one full step less, and of the
    step behind (Knuth 1971, "Optimum binary search trees", Acta Informatica 1).

    Args:
        passed: the way that lies behind each step, and behind the last one's end [N + 1]; it does not fall.
        full: 1 to N.
    """
    end = len(passed) - 1
    least, last = [0.0, *[math.inf] * end], [0] * (end + 1)
    ways = []
    for made in range(full):
        costs, way = [math.inf] * (end + 1), [0] * (end + 1)
        latest = end - 1
        for step in range(end, made, -1):
            earliest = max(last[step], made)
            latest = max(earliest, min(latest, step - 1))
            found = [least[before] + (passed[step] - passed[before]) ** 3 for before in range(earliest, latest + 1)]
            costs[step] = min(found)
            latest = way[step] = earliest + found.index(costs[step])
        least, last = costs, way
        ways.append(way)
    at, places = end, []
    for way in reversed(ways):
        at = way[at]
        places.append(at)
    return frozenset(places)


@dataclass(frozen=True)
class EvenSchedule(_FullOrSkipped):
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

    def full_steps(self, total: int, sigmas: tuple[float, ...] | None = None) -> frozenset[int]:
        """The full steps of a generation, by index, whatever its noise levels."""
        allowed = self.affordable(total)
        first = min(allowed, max(1, round(self.first * total)))
        rest, left = allowed - first, total - first
        return frozenset([*range(first), *(first - 1 + round((i + 1) * left / rest) for i in range(rest))])


@dataclass(frozen=True)
class FixedSchedule(_FullOrSkipped):
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

    def full_steps(self, total: int, sigmas: tuple[float, ...] | None = None) -> frozenset[int]:
        """The full steps of a generation, by index, whatever its noise levels."""
        if total == self.steps:
            return frozenset(self.full)
        allowed = self.affordable(total)
        there = (i * (len(self.full) - 1) / max(allowed - 1, 1) for i in range(allowed))
        found = (interpolated(place, range(len(self.full)), self.full) for place in there)
        return frozenset(round(index * (total - 1) / max(self.steps - 1, 1)) for index in found)
