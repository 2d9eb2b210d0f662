"""AT-EDM's choice of tokens: PageRank on the self-attention map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.ops.attention_map import check_chunk, page_rank
from tokenprune.policies.base import Memory, Need, Observation, ScorePolicy
from tokenprune.policies.description import Between, Description, Variant


@dataclass(frozen=True)
class AttentionRankPolicy(ScorePolicy):
    """Select the tokens that the others attend to most, and those that such tokens attend to.

    AT-EDM's ranking (Wang et al., Attention-Driven Training-Free Efficiency Enhancement of Diffusion Models,
    arXiv 2405.05252), with this package's caches instead of its recovery of pruned tokens: the baseline in the tables
    of CAT Pruning (arXiv 2502.00433). For each head with its attention map A, whose rows are softmaxed over the image
    tokens, s <- A^T s from s = 1 / N on, a few times; then the root mean square over the heads, scaled to add up to 1,
    and the mean over the attention modules. Higher is more important:

        score = s age^staleness.

    s is made at the last full step before a pruned one, of the conditional half. With staleness = 0, as in CAT
    Pruning's baseline, the same tokens are therefore computed at all pruned steps up to the next full one, and all
    others starve.

    Cost: at the last full step before a pruned one and in each attention module, `iterations` times half an attention
    of the conditional half, in the model's type, for `chunk` queries at a time; at a pruned step one sort.

    Differences: AT-EDM ranks anew in each attention block of a U-Net, on the tokens left by the one before, and
    spares some blocks in the first steps; here one ranking, of all tokens, serves all blocks. Attention to text is
    left out.

    Args:
        iterations: how often s is propagated, at least 1; 1 ranks by the attention received.
        chunk: queries whose rows of the map are held at once, at least 1.
        staleness: exponent of the age, at least 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"attention"})
    description: ClassVar[Description] = Description(
        "PageRank on the attention maps of the last full step",
        "AT-EDM, arXiv 2405.05252",
        "one power; at the last full step some halves of an attention",
        variants=(
            Variant(
                "AT-EDM's choice",
                "re-implementation of arXiv 2405.05252",
                suites={"ablations": (8,), "peers": (8,), "paper": (8,)},
            ),
            Variant(
                "AT-EDM's choice x age",
                "ours, after arXiv 2405.05252",
                {"staleness": 1.0},
                suites={"ablations": (8,), "rivals": (8,), "peers": (8,)},
                searched={"staleness": Between(0.0, 2.0)},
            ),
        ),
    )

    iterations: int = 3
    chunk: int = 128
    staleness: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations: expected a whole number of at least 1, got {self.iterations!r}")
        check_chunk(self.chunk)
        if not 0 <= self.staleness < float("inf"):
            raise ValueError(f"staleness: expected a number of at least 0, got {self.staleness}")

    def weigh_attention(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """PageRank of every image token in one module [B, N]; adds up to 1."""
        return page_rank(query, key, scale, self.iterations, self.chunk)

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """The score above [B, N]; the same for all tokens while nothing is known of the attention."""
        images, tokens = seen.prediction.shape[:2]
        rank = torch.full((images, tokens), 1 / tokens, device=seen.prediction.device)
        if seen.attention is not None:
            rank = seen.attention.float().nan_to_num()
        return rank if seen.age is None else rank * seen.age.float() ** self.staleness
