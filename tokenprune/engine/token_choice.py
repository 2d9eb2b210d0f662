"""Asking a policy for the tokens of a step, and checking what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from tokenprune.errors import SelectionError
from tokenprune.ops.selection import Selection
from tokenprune.policies.base import Memory, Observation, SelectionPolicy


class TokenChoice:
    """A policy's choices during one generation.

    Attributes:
        memory: the policy's own tensors.
    """

    def __init__(self) -> None:
        self.memory: Memory = {}
        self._previous: Selection | None = None
        self._pruned_steps = 0

    def full_step(self) -> None:
        """Note that a step computes all tokens."""
        self._previous, self._pruned_steps = None, 0

    def make(self, policy: SelectionPolicy, seen: Observation, agreed: Callable[[Tensor], Tensor]) -> Selection:
        """The policy's selection.

        Args:
            policy: the policy.
            seen: what it is shown; what it chose before is added here.
            agreed: gives the indices that all processes take which compute the model together.

        Raises:
            SelectionError: it is no selection of as many tokens as were asked for.
        """
        seen = replace(seen, previous=self._previous, pruned_steps=self._pruned_steps)
        selection = policy.select(seen, self.memory)
        _check(policy, seen, selection)
        selection = Selection(agreed(selection.index), selection.num_tokens)
        self._previous = selection
        self._pruned_steps += 1
        return selection

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        return sum(tensor.nbytes for tensor in self.memory.values())


def _check(policy: SelectionPolicy, seen: Observation, selection: object) -> None:
    where = f"{type(policy).__name__}.select at step {seen.step}"
    if not isinstance(selection, Selection):
        raise SelectionError(
            f"{where}: expected a Selection (Selection.top or Selection.from_index makes one), got "
            f"{type(selection).__name__}"
        )
    expected = (len(seen.prediction), seen.count, seen.prediction.shape[1])
    came = (selection.batch_size, selection.count, selection.num_tokens)
    if came != expected:
        raise SelectionError(
            f"{where}: expected indices [B, n] = {list(expected[:2])} out of {expected[2]} tokens, got "
            f"{list(came[:2])} out of {came[2]}"
        )
