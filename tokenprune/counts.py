"""A schedule by numbers of tokens, for the package's own measurements and checks; plan files cannot name it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenprune.schedule import Schedule, Step


class CountSchedule(Schedule):
    """Numbers of tokens as they are given.

    Args:
        counts: how many tokens each step computes; None is all.
    """

    def __init__(self, counts: Sequence[int | None]) -> None:
        self._counts = counts

    def fraction(self, step: Step) -> float:
        """Not known: counts are given directly."""
        raise NotImplementedError("counts are given directly")

    def count(self, step: Step, num_tokens: int) -> int:
        """The step's count."""
        count = self._counts[step.index]
        return num_tokens if count is None else count
