"""How many tokens: a schedule of mine."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune import Step
from tokenprune.schedule import IndexSchedule


@dataclass(frozen=True)
class Alternate(IndexSchedule):
    """Full steps first, then pruned and full ones by turns.

    Args:
        alpha: fraction of image tokens that a pruned step computes, 0 to 1.
        warmup_steps: full steps at the start, at least 1.
    """

    alpha: float = 0.3
    warmup_steps: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: expected a number above 0 up to 1, got {self.alpha!r}")
        if self.warmup_steps < 1:
            raise ValueError(f"warmup_steps: expected at least 1, got {self.warmup_steps!r}")

    def fraction(self, step: Step) -> float:
        """1 in the warm-up and at every second step after it."""
        after = step.index - self.warmup_steps
        return self.alpha if after >= 0 and after % 2 == 0 else 1.0
