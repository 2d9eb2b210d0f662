"""Generations that may take turns on a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.generation import Generation
from tokenprune.engine.step_tracker import CallPosition
from tokenprune.ops.guidance import BranchKey


@dataclass
class Window:
    """One of the generations that may take turns on a model.

    Attributes:
        generation: its steps so far, and what it keeps.
        alive: whether it may go on; False where none began, and where its caches were freed.
    """

    generation: Generation
    alive: bool = False


class Windows:
    """All of them, by label; the one whose call is under way, or was the last, is the current one.

    Args:
        none: gives what the window of a label has before its first generation begins.

    Attributes:
        label: of the current one; "" where generations do not take turns.
    """

    def __init__(self, none: Callable[[str], Generation]) -> None:
        self.label = ""
        self._none = none
        self._all = {"": Window(none(""))}
        self._current = self._all[""]

    @property
    def generation(self) -> Generation:
        """The one under way, or the last."""
        return self._current.generation

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory that their caches hold, but for those in host memory."""
        return sum(window.generation.nbytes for window in self._all.values())

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that they hold."""
        return sum(window.generation.host_bytes for window in self._all.values())

    def enter(self, label: str) -> Window:
        """Make the window of that label the current one."""
        self.label = label
        if label not in self._all:
            self._all[label] = Window(self._none(label))
        self._current = self._all[label]
        return self._current

    def empty(self) -> None:
        """Free all that they keep; none may go on."""
        self._current = Window(self.generation.emptied())
        self._all = {"": self._current}

    def let_go(self, labels: Collection[str], label: str, position: CallPosition) -> bool:
        """Forget windows that are given up, and what a window kept that the coming call has no use for.

        Args:
            labels: of the windows that go on.
            label: of the coming call's.
            position: of the coming call.

        Returns:
            Whether that window had kept anything that was freed.
        """
        self._all = {known: window for known, window in self._all.items() if known in labels}
        found = self._all.get(label)
        if found is None:
            return False
        last = found.generation.last_step if found.generation.token is position.generation else -1
        if not found.generation.branches or last >= position.step - 1:
            return False
        found.generation = found.generation.emptied()
        return True

    def branches_at(self, label: str, generation: object, step: int) -> Mapping[BranchKey, BranchCache]:
        """What a window keeps, if that is of this generation and its last step was this one; else nothing."""
        found = self._all.get(label)
        kept = found.generation if found is not None and found.alive else None
        if kept is None or kept.token is not generation or kept.last_step != step:
            return {}
        return kept.branches
