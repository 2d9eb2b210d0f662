"""What the prediction of a token becomes at a step that does not compute it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from tokenprune.ops.guidance import Guidance
from tokenprune.ops.selection import Selection
from tokenprune.reuse.key_value import KeyValueBuffer
from tokenprune.setting_types import Settings


class ReuseState(ABC):
    """The memory of one guidance branch during one generation.

    `times` are timesteps as the model receives them, in the model's own units.
    """

    @abstractmethod
    def record(self, prediction: Tensor, time: float) -> None:
        """Take in the prediction [B, N, C] of a full step."""

    @abstractmethod
    def complete(self, fresh: Tensor, selection: Selection, time: float) -> Tensor:
        """The whole prediction [B, N, C] of a pruned step, from the computed rows fresh [B, n, C].

        The returned tensor belongs to the caller: it must not alias the state's own memory.
        """

    @abstractmethod
    def forecast(self, time: float) -> Tensor:
        """The whole prediction [B, N, C] of a step that computes nothing; the caller's own, as in `complete`."""

    def expect(self, time: float) -> Tensor:
        """The same at a step that computes tokens, and is recorded or completed next: a state may keep its work."""
        return self.forecast(time)

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""


class Reuse(Settings, ABC):
    """A rule for predictions of tokens that are not computed; `start` gives one branch's memory."""

    @abstractmethod
    def start(self, guidance: Guidance = "none") -> ReuseState:
        """Fresh memory, for one guidance branch of one generation; or for both, where they share a batch."""

    def start_keys(self, guidance: Guidance = "none", depth: float = 0.0) -> KeyValueBuffer:
        """The same for keys and values of one attention module; by default they are held.

        Args:
            guidance: as of `start`.
            depth: share of the model's attention modules that come before this one, at least 0 and below 1.
        """
        return KeyValueBuffer()


@dataclass(frozen=True)
class Hold(Reuse):
    """Keep each token's last computed prediction (CAT Pruning, arXiv 2502.00433, algorithm 1)."""

    def start(self, guidance: Guidance = "none") -> ReuseState:
        """Fresh memory: one prediction."""
        return _HoldState()


class _HoldState(ReuseState):
    def __init__(self) -> None:
        self._last: Tensor | None = None

    def record(self, prediction: Tensor, time: float) -> None:
        self._last = prediction.clone()

    def complete(self, fresh: Tensor, selection: Selection, time: float) -> Tensor:
        flat = self._known.flatten(0, 1)
        flat.index_copy_(0, selection.rows(selection.num_tokens), fresh.flatten(0, 1))
        return self._known.clone()

    def forecast(self, time: float) -> Tensor:
        return self._known.clone()

    @property
    def _known(self) -> Tensor:
        if self._last is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        return self._last

    @property
    def nbytes(self) -> int:
        return 0 if self._last is None else self._last.nbytes
