"""Where calls stand that belong to one generation, of one model or of several that a pipeline calls in turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from torch import Tensor

from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.cache_limit import CacheLimit
from tokenprune.engine.correction import SamplerCorrection
from tokenprune.engine.full_step import FullStep
from tokenprune.engine.pruning_watch import PruningWatch
from tokenprune.engine.step_tracker import CallPosition, StepTracker
from tokenprune.engine.thread_label import ThreadLabel
from tokenprune.engine.thread_ownership import ThreadOwnership
from tokenprune.ops.guidance import BranchKey


class Member(Protocol):
    """A model whose calls are steps of the timeline."""

    @property
    def name(self) -> str:
        """What error messages call it."""

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory that its caches hold on its own devices."""

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that they hold."""

    def unwind(self) -> None:
        """Leave what an exception or an interrupt left behind."""

    def free(self) -> None:
        """Free all caches."""

    def let_go(self, windows: Collection[str], window: str, position: CallPosition) -> None:
        """Free what the coming call, which may be another model's, leaves no use for."""

    def branches_at(self, window: str, generation: object, step: int) -> Mapping[BranchKey, BranchCache]:
        """What it keeps, if that is of this generation and its last step was this one; else nothing."""


class Timeline:
    """Counts the steps of generations over all models that make them: each is called for some of a generation's steps.

    A schedule's steps are those of the whole generation. One call after another, of whichever model, moves it on; an
    exception in one of the models, or `reset`, ends the generation of all.

    Args:
        track: makes what follows the calls, told whether timesteps grow while the noise falls.
        window: what the generation goes by that the coming calls belong to, where several take turns.
        watch: notices generations in which nothing is pruned.
        correction: corrects the latents of the pipeline that calls the models, if it is known.
        most_bytes: that the caches of all models may hold together; None is no limit.

    Attributes:
        watch: as above.
        correction: as above.
        full_steps: of the latest generation, by window.
        latest: the generation of the latest call.
        generations: how many began.
        peak_bytes: most memory that the caches of all models held at the end of a call, on the models' own devices.
        peak_host_bytes: the same in host memory.
        limit: refuses what would make them hold more than allowed.
    """

    def __init__(
        self,
        track: Callable[[bool], StepTracker],
        window: ThreadLabel | None = None,
        watch: PruningWatch | None = None,
        correction: SamplerCorrection | None = None,
        most_bytes: int | None = None,
    ) -> None:
        self._track = track
        self._label = window or ThreadLabel()
        self._members: list[Member] = []
        self._ownership = ThreadOwnership("")
        self._trackers: dict[str, StepTracker] = {}
        self.watch = watch or PruningWatch()
        self.correction = correction
        self.full_steps: dict[str, list[FullStep]] = {}
        self.latest: object = None
        self.generations = 0
        self.peak_bytes = self.peak_host_bytes = 0
        self.limit = CacheLimit(most_bytes, lambda: self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory that the caches of all models hold on the models' own devices."""
        return sum(member.nbytes for member in self._members)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that they hold."""
        return sum(member.host_bytes for member in self._members)

    def join(self, member: Member, time_rises: bool) -> bool:
        """Take in another model.

        Args:
            member: the model; the first one's timesteps say how those of all run.
            time_rises: whether its timesteps grow while the noise falls, as far as its map tells.

        Returns:
            Whether they do.
        """
        if not self._members:
            self._begin(time_rises)
        self._members.append(member)
        self._ownership.model = " and ".join(dict.fromkeys(each.name for each in self._members))
        return self._time_rises

    def _begin(self, time_rises: bool) -> None:
        self._time_rises = time_rises
        self._tracker = self._track(time_rises)
        self._trackers = {"": self._tracker.renewed()}
        self.watch.forget()

    def restart_with_rising_time(self) -> None:
        """Timesteps turned out to grow while the noise falls: the coming call begins its generation once more."""
        windows = list(self._trackers)
        self._begin(True)
        self._trackers = {window: self._tracker.renewed() for window in windows}
        self.generations -= 1

    def enter(self) -> None:
        """A call of this thread begins.

        Raises:
            ConcurrentUseError: a call of another thread is under way.
        """
        if self._ownership.enter():  # an interrupt that torch's hooks do not see stopped the last call
            self.abandon()

    def leave(self) -> None:
        """A call of this thread went through.

        Raises:
            CacheLimitError: the caches hold more than allowed.
        """
        self.limit.check()
        self.peak_bytes = max(self.peak_bytes, self.nbytes)
        self.peak_host_bytes = max(self.peak_host_bytes, self.host_bytes)
        self.watch.see_caches(self.peak_bytes)
        self._ownership.leave()

    def fail(self) -> None:
        """An exception stopped this thread's call: start afresh with the next, unless the caches are another's."""
        if self._ownership.leave():
            self.abandon()

    def abandon(self) -> None:
        """Leave modes and start afresh with the next call."""
        for member in self._members:
            member.unwind()
        self.reset()

    def reset(self) -> None:
        """Free the caches of all models; the next call starts a generation."""
        self._ownership.reset()
        self._trackers = {"": self._tracker.renewed()} if self._members else {}
        self.watch.forget()
        self.full_steps.clear()
        if self.correction is not None:
            self.correction.forget()
        for member in self._members:
            member.free()

    def advance(
        self, timestep: Tensor | float | int, latents: Tensor, branch: str, others: Mapping[str, Any]
    ) -> tuple[str, CallPosition]:
        """Take in the next call, and say in which window it is and where it stands there.

        Args:
            timestep: as the model received it.
            latents: the noisy latents.
            branch: what the pipeline calls the guidance branch.
            others: the model's other arguments by name.

        Raises:
            ConcurrentUseError: another thread began the generation that the call goes on with, or one after it.
            UnsupportedCallError: the timestep holds no value, or other latents come at the same timestep.
        """
        window = self._label.name
        if window not in self._trackers:
            self._trackers[window] = self._tracker.renewed()
        tracker, position = self._ownership.advance(self._trackers[window], timestep, latents, branch, others)
        if tracker is not self._trackers[window]:  # another thread begins: its generation takes the place of all others
            self._trackers = {window: tracker}
        self.latest = position.generation
        if position.first_of_generation:
            self.generations += 1
            self.full_steps[window] = []
            self.watch.begin(window, position)
        self.generations += position.adopted > 0
        for member in self._members:
            member.let_go(self._trackers, window, position)
        return window, position

    def handed_on(self, window: str, position: CallPosition) -> dict[BranchKey, Tensor]:
        """The last step's predictions of another model [B, N, C] by guidance branch, for one that joins in."""
        found: dict[BranchKey, Tensor] = {}
        for member in self._members:
            branches = member.branches_at(window, position.generation, position.step - 1)
            found.update({key: each.prediction for key, each in branches.items() if each.prediction is not None})
        return found
