"""Consecutive rows in a fixed rotation."""

from __future__ import annotations

from typing import ClassVar

import torch

from tokenprune.ops.selection import Selection
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.policies.description import Description, Variant


class SequentialPolicy(SelectionPolicy):
    """Select n consecutive tokens in row-major order, starting where the last selection ended.

    CAT Pruning (arXiv 2502.00433), Fig. 6: looks at nothing, yet refreshes every token equally often. Cost: none.
    """

    description: ClassVar[Description] = Description(
        "consecutive tokens in rotation",
        "CAT Pruning, Fig. 6",
        "none",
        variants=(
            Variant(
                "consecutive rows",
                "arXiv 2502.00433, Fig. 6",
                suites={"ablations": (8, 4), "rivals": (4,), "paper": (8,)},
                searched={},
            ),
        ),
    )

    def select(self, seen: Observation, memory: Memory) -> Selection:
        """Tokens i n to (i + 1) n - 1, modulo N, at pruned step i."""
        batch, tokens = seen.prediction.shape[:2]
        window = torch.arange(seen.count, device=seen.prediction.device) + seen.pruned_steps * seen.count
        index = (window % tokens).sort().values
        return Selection(index.expand(batch, -1), tokens)
