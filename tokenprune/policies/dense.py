"""No pruning: every step is a full step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.ops.selection import Selection
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.policies.description import Description


@dataclass(frozen=True)
class DensePolicy(SelectionPolicy):
    """Compute every token at every step; the hooks stay in place and the result is the plain model's, bit for bit."""

    description: ClassVar[Description] = Description("every token", "baseline", "none")

    alpha: float = 1.0

    def select(self, seen: Observation, memory: Memory) -> Selection:
        """Never asked under its own schedule; under another one, the first tokens of the grid."""
        return Selection.top(seen.prediction.new_zeros(seen.prediction.shape[:2]), seen.count)
