"""What the tokens that are not computed become: a forecast of mine."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune import Reuse, ReuseState, Selection
from tokenprune.ops.guidance import Guidance


@dataclass(frozen=True)
class MeanDrift(Reuse):
    """They keep their last prediction, moved as far as the computed tokens of their image moved on average.

    Args:
        strength: 0 holds them, 1 moves them all the way.
    """

    strength: float = 1.0

    def start(self, guidance: Guidance = "none") -> ReuseState:
        """Fresh memory for one guidance branch: one prediction."""
        return _MeanDriftState(self.strength)


class _MeanDriftState(ReuseState):
    def __init__(self, strength: float) -> None:
        self._strength = strength
        self._last: Tensor | None = None

    def record(self, prediction: Tensor, time: float) -> None:
        self._last = prediction.clone()

    def complete(self, fresh: Tensor, selection: Selection, time: float) -> Tensor:
        last = self.forecast(time)
        drift = (fresh - selection.gather(last)).mean(dim=1, keepdim=True)
        self._last = selection.scatter(fresh, last + self._strength * drift)
        return self._last.clone()

    def forecast(self, time: float) -> Tensor:
        if self._last is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        return self._last.clone()

    @property
    def nbytes(self) -> int:
        return 0 if self._last is None else self._last.nbytes
