"""ToCa's scores, as far as they need nothing from inside the modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenprune.ops.attention_map import check_chunk, column_means
from tokenprune.ops.grid import TokenGrid
from tokenprune.policies.base import Memory, Need, Observation, ScorePolicy
from tokenprune.policies.description import Between, Description, Variant


@dataclass(frozen=True)
class TocaPolicy(ScorePolicy):
    """Select tokens that others attend to, that were reused often, and that are spread over the grid.

    After ToCa (Zou et al., Accelerating Diffusion Transformers with Token-wise Feature Caching, arXiv 2410.05317).
    Higher is more important:

        score = (influence s_1 + frequency (age - 1) / interval) (1 + uniformity if best of its neighbourhood else 1),

    s_1 being the attention that a token receives (column sums of the attention map, mean over heads and modules, L2
    norm 1 over the image) at the last full step, and age - 1 the steps that reused the token. A neighbourhood is a
    square of `neighbourhood` x `neighbourhood` tokens of one frame, cut off at the grid's border; the first of
    equally good tokens is raised. Defaults are the published code's for DiT.

    Cost: at the last full step before a pruned one and in each attention module half an attention of the conditional
    half, in the model's type, for `chunk` queries at a time; at a pruned step element-wise operations and one sort.

    Differences: ToCa's second score, the entropy of a token's cross-attention, is left out, as engine and models
    with joint attention do not show it; its code for PixArt uses that one instead of s_1. ToCa scores each
    layer, and its attention and MLP apart, with more tokens in some layers; here one selection serves all. There,
    `interval` is the distance of full steps; a policy does not know the schedule, so it is a setting. With s_1 of L2
    norm 1 its mean is at most 1 / sqrt(N), so at 4096 tokens frequency weighs four times as much against it
    as at the 256 that the defaults were made for.

    Args:
        influence: weight of s_1, at least 0.
        frequency: weight of the reused steps, at least 0.
        uniformity: by which fraction the best of each neighbourhood is raised, at least 0.
        interval: steps between full ones, above 0.
        neighbourhood: side of a neighbourhood in tokens, at least 1.
        chunk: queries whose rows of the map are held at once, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"attention"})
    description: ClassVar[Description] = Description(
        "attention received, steps reused, spread over the grid",
        "ToCa, arXiv 2410.05317",
        "element-wise; at the last full step half an attention",
        variants=(
            Variant(
                "ToCa's choice",
                "re-implementation of arXiv 2410.05317",
                suites={"ablations": (8, 4), "rivals": (4,), "peers": (4,)},
                searched={"frequency": Between(0.05, 2.0, log=True)},
            ),
        ),
    )

    influence: float = 1.0
    frequency: float = 0.25
    uniformity: float = 0.6
    interval: float = 3.0
    neighbourhood: int = 2
    chunk: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("influence", "frequency", "uniformity"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")
        if not 0 < self.interval < float("inf"):
            raise ValueError(f"interval: expected a number above 0, got {self.interval}")
        if self.neighbourhood < 1:
            raise ValueError(f"neighbourhood: expected a whole number of at least 1, got {self.neighbourhood!r}")
        check_chunk(self.chunk)

    def weigh_attention(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """Mean attention that every image token receives in one module [B, N]; adds up to 1."""
        return column_means(query, key, scale, self.chunk)

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """The score above [B, N]; without attention or ages their terms are 0."""
        score = torch.zeros(seen.prediction.shape[:2], device=seen.prediction.device)
        if seen.attention is not None:
            score = score + self.influence * F.normalize(seen.attention.float().nan_to_num(), dim=-1)
        if seen.age is not None:
            score = score + self.frequency / self.interval * (seen.age - 1)
        return score * (1 + self.uniformity * best_of_neighbourhood(score, seen.grid, self.neighbourhood))


def best_of_neighbourhood(scores: Tensor, grid: TokenGrid, side: int) -> Tensor:
    """1 at the first token with the highest score of each square of side x side tokens of a frame, else 0 [B, N].

    Args:
        scores: [B, N].
        grid: (h, w), or (t, h, w) with squares in each frame.
        side: squares begin at multiples of it; those at the far borders may be smaller.
    """
    height, width = grid[-2:]
    padding = (0, -width % side, 0, -height % side)
    frames = F.pad(scores.reshape(-1, height, width), padding, value=float("-inf"))
    squares = frames.unflatten(1, (-1, side)).unflatten(3, (-1, side)).transpose(2, 3)  # frames, rows, columns, i, j
    flat = squares.flatten(3)
    best = torch.zeros_like(flat).scatter_(3, flat.argmax(dim=3, keepdim=True), 1.0)
    whole = best.view_as(squares).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return whole[:, :height, :width].reshape(scores.shape)
