"""Selection by the magnitude of the relative noise alone."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tokenprune.policies.base import Memory, Observation, ScorePolicy
from tokenprune.policies.description import Description, Variant


class NoisePolicy(ScorePolicy):
    """Select the tokens whose prediction has moved most since the full steps.

    CAT Pruning (arXiv 2502.00433), section 3.2 and Fig. 4: score ||RN_i||_2, higher is more important. Tokens
    crowd on the subject and the rest goes stale; the paper shows it as an ablation. Cost: one norm and one sort.
    """

    description: ClassVar[Description] = Description(
        "the largest relative noise",
        "CAT Pruning, Fig. 4",
        "one norm",
        variants=(Variant("noise", "arXiv 2502.00433, Fig. 4", suites={"ablations": (8,), "paper": (8,)}),),
    )

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """||RN_i||_2 of every token [B, N]."""
        return seen.relative_noise.norm(dim=-1)
