"""Region-adaptive sampling's choice of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from tokenprune.policies.base import Memory, Observation, ScorePolicy
from tokenprune.policies.description import Between, Description, OneOf, Variant

Metric = Literal["std", "norm"]


@dataclass(frozen=True)
class RegionAdaptivePolicy(ScorePolicy):
    """Select tokens by the spread of their prediction, raised each time they were left out.

    After RAS (Liu et al., Region-Adaptive Sampling for Diffusion Transformers, arXiv 2502.10389). The metric m is the
    standard deviation of a token's prediction over its channels, or its L2 norm, and D counts the pruned steps of
    the generation that left the token out. Higher is more important:

        score = m exp(starvation D), or exp(starvation D) / m where `ascending`.

    Computed as starvation D + log m, or - log m, which gives the same order and does not overflow. Cost: one
    reduction over the channels and one sort; one number per token is remembered.

    Which end of m is kept is not settled by the source. The authors' project page says that fast-update regions,
    those the model focuses on, are computed, not which spread they have. Their published code sorts
    m exp(starvation D) and leaves out tokens at both ends, a fraction `high_ratio` of them at the top: with its
    default 1, which the README states, the highest are left out and the lowest computed; with 0.3, as in its example
    script for SD3, most are left out at the bottom. The factor exp(starvation D), there to prevent starvation,
    does so only where the highest are computed; where they are left out it keeps out what was left out before. The
    highest are therefore first by default; `ascending` is the other sign, with the factor still against starvation.

    Further differences: the published code takes m over the channels of each latent pixel and averages a token's
    pixels; here it is taken over all channels of the token at once. Leaving out at both ends is not offered. What
    the last selection before a full step left out is not counted.

    Args:
        metric: "std" or "norm".
        ascending: whether the tokens with the lowest metric come first.
        starvation: weight of the count, at least 0; 0.1 by default in the published code, 1 in its
            example script for SD3.

    Raises:
        ValueError: an argument is out of its range.
    """

    description: ClassVar[Description] = Description(
        "spread of the prediction, raised by each omission",
        "RAS, arXiv 2502.10389",
        "one reduction over C",
        variants=(
            Variant(
                "RAS's choice",
                "re-implementation of arXiv 2502.10389",
                suites={"ablations": (8,), "rivals": (8,), "peers": (8,)},
                searched={"metric": OneOf(("std", "norm")), "starvation": Between(0.05, 2.0, log=True)},
            ),
        ),
    )

    metric: Metric = "std"
    ascending: bool = False
    starvation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in get_args(Metric):
            raise ValueError(f"metric: expected one of {', '.join(get_args(Metric))}, got {self.metric!r}")
        if not 0 <= self.starvation < float("inf"):
            raise ValueError(f"starvation: expected a number of at least 0, got {self.starvation}")

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """The logarithm of the score above [B, N]."""
        prediction = seen.prediction.float().nan_to_num()
        drops = memory.get("drops", torch.zeros(prediction.shape[:2], device=prediction.device))
        if seen.previous is not None:
            drops = drops + ~seen.previous.mask()
        memory["drops"] = drops
        spread = prediction.std(dim=-1, correction=0) if self.metric == "std" else prediction.norm(dim=-1)
        size = spread.nan_to_num().clamp_min(torch.finfo(spread.dtype).tiny).log()
        return self.starvation * drops + (-size if self.ascending else size)
