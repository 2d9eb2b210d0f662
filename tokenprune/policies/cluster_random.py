"""Random tokens, equally many from every cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.ops.kmeans import kmeans
from tokenprune.ops.ranking import places_within, ranks
from tokenprune.policies.base import Memory, Observation, ScorePolicy
from tokenprune.policies.description import Description, Variant


@dataclass(frozen=True)
class ClusterRandomPolicy(ScorePolicy):
    """Cluster the tokens by their prediction and draw as many from each cluster.

    After ClusCa (Zheng et al., Compute Only 16 Tokens in One Timestep, arXiv 2509.10312), which computes one random
    token of each cluster; so does this with n = K. Higher is more important:

        score = -(place of the token in a random order of its cluster),

    so that every cluster gives one token, then a second one, until there are n; where only some clusters can give
    another, the order of the draw decides. Clusters that are used up leave their share to the others. Tokens are
    clustered by k-means at the first pruned step after a full step. All images share the draw of a step, so that an
    image's tokens do not depend on its batch. Cost: k-means once after each full step, then four sorts a step.

    The paper clusters features of the blocks, here predictions are clustered; it also moves the clusters' other
    tokens along with the computed one, which is a matter of reuse and not done here.

    Args:
        num_clusters: K, at least 1; the paper's title has 16.
        seed: seed of the k-means start and of the draws.

    Raises:
        ValueError: an argument is out of its range.
    """

    description: ClassVar[Description] = Description(
        "as many random tokens from every cluster",
        "ClusCa, arXiv 2509.10312",
        "k-means after each full step, four sorts",
        variants=(Variant("ClusCa's choice", "re-implementation of arXiv 2509.10312", suites={}),),
    )

    num_clusters: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_clusters < 1:
            raise ValueError(f"num_clusters: expected a whole number of at least 1, got {self.num_clusters!r}")

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """Minus the place of every token [B, N] in the order of selection."""
        images, tokens = seen.prediction.shape[:2]
        clusters = min(self.num_clusters, tokens)
        if "labels" not in memory or seen.pruned_steps == 0:
            features = seen.prediction.float().nan_to_num()
            memory["labels"] = kmeans(features, clusters, self.seed)
        draw = self._draw(seen).expand(images, -1)
        order = draw.argsort(dim=1, descending=True, stable=True)
        return -(places_within(memory["labels"], order, clusters) * tokens + ranks(draw))

    def _draw(self, seen: Observation) -> Tensor:
        """Independent uniform numbers [1, N] of the step."""
        device = seen.prediction.device
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + seen.step)
        return torch.rand(1, seen.prediction.shape[1], generator=generator, device=device)
