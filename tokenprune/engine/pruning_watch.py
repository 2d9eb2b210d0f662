"""Notices of generations in which nothing is pruned, or that are too short for it, and of caches that are large."""

from __future__ import annotations

from tokenprune.engine.step_tracker import CallPosition
from tokenprune.notices import Notices
from tokenprune.schedule import LONG, Schedule, steps_needed
from tokenprune.units import memory_in_words

LARGE = 4 * 2**30
"""Bytes of caches that are worth telling."""


class PruningWatch:
    """Tells once where a generation computes everything though its schedule would prune in a longer one.

    That is foretold at a generation's first call where the number of its steps is known, and else told when the next
    one begins. It also tells once what the schedule cautions against, and of caches that hold `LARGE`
    bytes or more.

    Args:
        schedule: says how many tokens each step computes; None watches nothing.
        notices: takes what is to be told.
    """

    def __init__(self, schedule: Schedule | None = None, notices: Notices | None = None) -> None:
        self._schedule, self._notices = schedule, notices
        self._last: dict[str, tuple[int, bool]] = {}  # steps so far, and whether any was pruned, by window

    def forget(self) -> None:
        """Generations under way are given up."""
        self._last = {}

    def begin(self, window: str, position: CallPosition) -> None:
        """A generation begins in a window."""
        steps, pruned = self._last.pop(window, (0, True))
        if not pruned:
            self._tell(steps, "the last generation computed all tokens at each of its")
        if position.remaining is not None and self._schedule is not None:
            total = position.step + position.remaining
            if self._schedule.prunes(total) is False:
                self._tell(total, "nothing will be pruned: the generation that begins has")
            caution = self._schedule.caution(total)
            if caution is not None and self._notices is not None:
                self._notices.warn("caution", f"the generation that begins has {in_steps(total)}: {caution}")

    def step(self, window: str, step: int, pruned: bool) -> None:
        """A step of a window's generation begins."""
        _, before = self._last.get(window, (0, False))
        self._last[window] = step + 1, before or pruned

    def see_caches(self, nbytes: int) -> None:
        """What the caches of all models hold at the end of a call."""
        if nbytes >= LARGE and self._notices is not None:
            self._notices.warn(
                "caches",
                f"the caches hold {memory_in_words(nbytes)} by now; apply(..., cache_dtype=...) keeps keys and values "
                f'in smaller types, cache_device="cpu" keeps them in host memory, and handle.reset() frees them after '
                f"a generation",
            )

    def _tell(self, steps: int, what: str) -> None:
        schedule = self._schedule
        if schedule is None or self._notices is None or schedule.prunes(LONG) is False:
            return  # nothing was meant to be pruned
        needed = steps_needed(schedule, steps)
        asks = f", which needs {needed} of them to prune any" if needed is not None else ""
        self._notices.warn("nothing pruned", f"{what} {in_steps(steps)}, under {schedule!r}{asks}")


def in_steps(count: int) -> str:
    """A number of steps in words."""
    return f"{count} {'step' if count == 1 else 'steps'}"
