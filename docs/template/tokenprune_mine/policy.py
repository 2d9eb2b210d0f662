"""Which tokens: a policy of mine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune import Memory, Observation, ScorePolicy


@dataclass(frozen=True)
class DriftPolicy(ScorePolicy):
    """The tokens furthest from where they were, those not computed for long above all.

    Args:
        patience: how much a step without being computed adds, as a multiple of the distance.
    """

    patience: float = 1.0

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """Distance from the reference times age, [B, N]; the highest are computed."""
        age = torch.zeros_like(seen.relative_noise[..., 0]) if seen.age is None else seen.age.float()
        return seen.relative_noise.norm(dim=-1) * (1 + self.patience * age)
