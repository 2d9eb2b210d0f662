"""Several policies that share the tokens of a step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.ops.grid import TokenGrid
from tokenprune.ops.ranking import ranks
from tokenprune.ops.selection import Selection
from tokenprune.policies._composition import namespace, preference
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.policies.description import Description
from tokenprune.policies.noise import NoisePolicy
from tokenprune.policies.sequential import SequentialPolicy


@dataclass(frozen=True)
class MixturePolicy(SelectionPolicy):
    """Give each of several policies a share of the tokens, in their order.

    Our own; CAT Pruning's exploit and stale shares (arXiv 2502.00433) are the pattern. Of n tokens, part k gets
    floor(n c_k) - floor(n c_(k-1)), where c_k is the sum of the shares up to k over the sum of all. It takes the
    tokens it prefers most among those that no part before it took, so that n tokens are selected, each once.

    A part that is a `ScorePolicy` is followed in the order of its scores. Any other is asked once, for as many
    tokens as all parts up to it get together, which leaves it enough; where that leaves more than its own number,
    the tokens not computed for longest are taken, then the first in the grid. Each part has a memory of its own and
    sees as `previous` what was really selected; its own alpha, warm-up and schedule are ignored. Cost: that of the
    parts, and two sorts for each.

    Args:
        parts: pairs (policy, share), shares above 0; they need not add up to 1.

    Raises:
        ValueError: there are no parts, a share is not above 0, or two different parts need attention statistics.
    """

    description: ClassVar[Description] = Description(
        "shares of the n tokens to several policies",
        "ours, after CAT Pruning's two shares",
        "that of all parts, two sorts each",
        "those of all parts",
    )

    parts: tuple[tuple[SelectionPolicy, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise ValueError("parts: expected at least one pair (policy, share), got none")
        for _, share in self.parts:
            if not 0 < share < float("inf"):
                raise ValueError(f"parts: expected shares above 0, got {share}")
        asking = {policy for policy, _ in self.parts if "attention" in policy.needs}
        if len(asking) > 1:
            raise ValueError(f"parts: expected one policy with attention statistics at most, got {len(asking)}")
        object.__setattr__(self, "needs", frozenset().union(*(policy.needs for policy, _ in self.parts)))

    @classmethod
    def examples(cls, grid: TokenGrid) -> dict[str, SelectionPolicy]:
        """A quarter by noise, the rest in rotation."""
        parts = ((NoisePolicy(), 0.25), (SequentialPolicy(), 0.75))
        return {"MixturePolicy(noise, consecutive rows)": cls(parts=parts)}

    def weigh_attention(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """That of the first part that needs it."""
        asking = next(policy for policy, _ in self.parts if "attention" in policy.needs)
        return asking.weigh_attention(query, key, scale)

    def quotas(self, count: int) -> list[int]:
        """How many of `count` tokens each part gets."""
        total, reached, given = sum(share for _, share in self.parts), 0.0, [0]
        for _, share in self.parts:
            reached += share
            # one part in 10^9 of leeway, so that three thirds of 9 are 3 each
            given.append(min(count, int(count * reached / total + 1e-9)))
        given[-1] = count
        return [high - low for low, high in pairwise(given)]

    def select(self, seen: Observation, memory: Memory) -> Selection:
        """Tokens of the first part, then of the second from what is left, and so on."""
        images, tokens = seen.prediction.shape[:2]
        chosen = torch.zeros(images, tokens, dtype=torch.bool, device=seen.prediction.device)
        reached = 0
        for place, ((policy, _), quota) in enumerate(zip(self.parts, self.quotas(seen.count), strict=True)):
            reached += quota
            with namespace(memory, str(place)) as own:
                places = preference(policy, seen, own, max(1, reached))
            chosen = chosen | (ranks(-places.masked_fill(chosen, tokens)) < quota)
        return Selection.top(chosen.int(), seen.count)
