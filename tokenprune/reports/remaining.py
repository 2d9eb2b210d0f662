"""How much of a long work is done, and how long the rest may take."""

from __future__ import annotations

import time


class Remaining:
    """Counts what is done; as words: `3 of 7, about 20 s left`, from the mean time of those that are done.

    Args:
        total: how many there will be; None where that is not known, and nothing is said then.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.done = 0
        self._start = self._now = time.perf_counter()

    def finish_one(self) -> None:
        """One more is done."""
        self.done += 1
        self._now = time.perf_counter()

    @property
    def seconds(self) -> float | None:
        """What the rest may take; None where nothing is done or the total is not known."""
        if self.total is None or not self.done:
            return None
        return (self._now - self._start) / self.done * max(0, self.total - self.done)

    def __str__(self) -> str:
        if self.total is None:
            return ""
        seconds = self.seconds
        left = "" if seconds is None or self.done >= self.total else f", about {in_words(seconds)} left"
        return f"{self.done} of {max(self.total, self.done)}{left}"


def in_words(seconds: float) -> str:
    """Rounded as a plan for the next minutes needs it: `20 s`, `3 min`, `2 h 10 min`."""
    if round(seconds) < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
