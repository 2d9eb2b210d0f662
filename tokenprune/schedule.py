"""How many tokens each step computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """A fraction of the image tokens for every step of a generation."""

    @abstractmethod
    def fraction(self, step: int, time: float) -> float:
        """Fraction of the image tokens computed, above 0 up to 1 (1: a full step).

        Args:
            step: index of the step in its generation, from 0.
            time: the timestep as the model receives it.
        """

    def count(self, step: int, time: float, num_tokens: int) -> int:
        """How many of N = num_tokens tokens are computed; int(fraction * N), at least 1 (CAT Pruning, section 3)."""
        fraction = self.fraction(step, time)
        return num_tokens if fraction >= 1 else max(1, int(fraction * num_tokens))


@dataclass(frozen=True)
class WarmupSchedule(Schedule):
    """Full steps first, then a constant fraction: the schedule of CAT Pruning (arXiv 2502.00433).

    Args:
        alpha: fraction of image tokens computed at a pruned step, above 0 up to 1.
        warmup_steps: full steps at the start of each generation, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    alpha: float
    warmup_steps: int

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: expected a fraction of image tokens in (0, 1], got {self.alpha}")
        if not isinstance(self.warmup_steps, int) or self.warmup_steps < 1:
            raise ValueError(f"warmup_steps: expected a whole number of at least 1, got {self.warmup_steps!r}")

    def fraction(self, step: int, time: float) -> float:
        """1 during the warm-up, alpha after it."""
        return 1.0 if step < self.warmup_steps else self.alpha
