"""Random selection: the baseline that any policy must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.policies.base import Memory, Observation, ScorePolicy
from tokenprune.policies.description import Description, Variant


@dataclass(frozen=True)
class RandomPolicy(ScorePolicy):
    """Select tokens uniformly at random, anew at every step; the same places in every image of a batch.

    Args:
        seed: seed of the draw; with the step's index it determines the selection.
    """

    description: ClassVar[Description] = Description(
        "uniform, anew at each step", "baseline", "N random numbers", variants=(Variant("random", "baseline"),)
    )

    seed: int = 0

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """Independent uniform numbers [B, N]."""
        device = seen.prediction.device
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + seen.step)
        batch, tokens = seen.prediction.shape[:2]
        return torch.rand(1, tokens, generator=generator, device=device).expand(batch, -1)
