"""Which thread's generation a model's caches hold, and whose call of the model is under way."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import Tensor

from tokenprune.engine.step_tracker import CallPosition, StepTracker
from tokenprune.errors import ConcurrentUseError

_ENTERING = threading.Lock()


class ThreadOwnership:
    """Lets threads use one model in turns, a whole generation each, and stops them from mixing their caches.

    Between generations any thread may go on. A thread whose generation was cut off by another thread's is told so at
    its next call. What an interrupt or a thread's end left unfinished binds nobody.

    Args:
        model: what error messages call the model, or the models that make generations together.

    Attributes:
        model: as above.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._owner = 0
        self._trackers: dict[int, StepTracker] = {}
        self._caller = 0
        self._frame: FrameType | None = None

    def enter(self) -> bool:
        """A call of this thread begins; returns whether one before it never ended.

        Raises:
            ConcurrentUseError: a call of another thread is under way.
        """
        me = threading.get_ident()
        with _ENTERING:
            before = self._caller
            if before not in (0, me) and self._under_way():
                raise ConcurrentUseError(
                    f"{self.model}: expected calls of one thread at a time, got one while a call of another thread is "
                    f"under way; let one generation end before the next begins, or give each thread its own copy of "
                    f"the model"
                )
            self._caller, self._frame = me, _frame_of_call()
        return before != 0

    def leave(self) -> bool:
        """A call of this thread ends; returns whether the caches are its own, or nobody's."""
        me = threading.get_ident()
        if self._caller not in (0, me):
            return False
        self._caller, self._frame = 0, None
        return self._owner in (0, me)

    def advance(
        self,
        tracker: StepTracker,
        timestep: Tensor | float | int,
        latents: Tensor,
        name: str,
        others: Mapping[str, Any],
    ) -> tuple[StepTracker, CallPosition]:
        """Take this thread's next call for a step of its generation.

        Args:
            tracker: follows the generation that the caches hold.
            timestep: as the model received it.
            latents: the noisy latents.
            name: of the guidance branch.
            others: the model's other arguments by name.

        Returns:
            What follows the generation that the caches hold from now on, and where the call stands.

        Raises:
            ConcurrentUseError: another thread began the generation that the call goes on with, or one after it.
        """
        me = threading.get_ident()
        if self._owner in (0, me):
            self._owner = me
            return tracker, tracker.advance(timestep, latents, name, others)
        own = self._trackers.setdefault(me, tracker.renewed())
        step = tracker.copied().advance(timestep, latents, name, others).step
        position = own.advance(timestep, latents, name, others)
        if step > 0 or not position.first_of_generation:
            raise ConcurrentUseError(
                f"{self.model}: expected all calls of a generation from one thread, with no other generation in "
                f"between, got step {step or position.step} of one while the caches are another thread's; let one "
                f"generation end before the next begins, give each thread its own copy of the model, or call "
                f"handle.reset() if the other generation was given up"
            )
        alive = sys._current_frames()
        self._trackers[self._owner] = tracker
        self._trackers = {ident: found for ident, found in self._trackers.items() if ident in alive and ident != me}
        self._owner = me
        return own, position

    def reset(self) -> None:
        """The caches are nobody's; a call that an interrupt stopped is over."""
        self._owner = 0
        self._trackers = {}
        if not self._under_way():
            self._caller, self._frame = 0, None

    def _under_way(self) -> bool:
        """Whether the call that began last still runs."""
        frame: Any = sys._current_frames().get(self._caller)
        if frame is None or self._frame is None:
            return frame is not None
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None


def _frame_of_call() -> FrameType | None:
    """The frame of the module call that ran the hook; None where it cannot be told."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "_call_impl":
        frame = frame.f_back
    return frame
