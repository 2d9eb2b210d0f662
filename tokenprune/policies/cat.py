"""CAT Pruning's cluster-aware selection, complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.ops.cluster_graph import cluster_adjacency, convolve, load, max_pool
from tokenprune.ops.grid import positional_encoding
from tokenprune.ops.kmeans import kmeans
from tokenprune.ops.ranking import ranks, ranks_within, stale_first
from tokenprune.ops.selection import Selection
from tokenprune.policies._balance import check_balance, choose, update_frequency
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.policies.description import Between, Description, Variant

_SUITES = {"ablations": (8, 4), "rivals": (8, 4), "peers": (8, 4), "paper": (8,)}


@dataclass(frozen=True)
class CATPolicy(SelectionPolicy):
    """Cluster-aware token pruning: Cheng, Chen and Jia, arXiv 2502.00433, algorithm 2.

    At the first pruned step the tokens of each image are clustered once (k-means on relative noise plus a
    positional encoding). At every pruned step the relative noise is max-pooled over the clusters, convolved once
    over the graph of touching clusters, and clusters are ranked by the norm of the result. The best clusters give
    tokens by noise and by low selection frequency; the least recently selected tokens fill up to exactly n.

    Where the paper gives no constant, the published code's is the default.

    Args:
        num_clusters: K, at least 1.
        decay: a in the selection frequency f_i = a f_(i-1) + I_i, from 0 up to below 1.
        seed: seed of the k-means start.
        exploit_share: fraction of the selected tokens taken from the clusters after the first selection (which
            is from clusters alone), 0 to 1; the others are the stalest.
        first_quotas: fractions of n taken from the clusters in their order at the first selection.
        quotas: the same for later selections, as fractions of the exploit share.
        feature_scale: None clusters on RN + positional encoding (paper); a number clusters on the encoding plus
            that multiple of the prediction (published code).
        convolve_always: convolve at every selection (paper) or only at the first (published code).
        balance_top: balance the best cluster by frequency, too.

    Raises:
        ValueError: an argument is out of its range.
    """

    description: ClassVar[Description] = Description(
        "clusters by noise, balanced by staleness; see [cat.md](cat.md)",
        "CAT Pruning, arXiv 2502.00433",
        "k-means once a generation; pooling, graph convolution, some ten sorts",
        variants=(
            Variant("CAT", "arXiv 2502.00433", suites=_SUITES, searched={"exploit_share": Between(0.0, 1.0)}),
            Variant("CAT, published constants", "arXiv 2502.00433", maker="published", suites=_SUITES, searched={}),
        ),
    )

    num_clusters: int = 20
    decay: float = 0.5
    seed: int = 0
    exploit_share: float = 0.25
    first_quotas: tuple[float, ...] = (0.1,) * 10
    quotas: tuple[float, ...] = (0.2,) * 5
    feature_scale: float | None = None
    convolve_always: bool = True
    balance_top: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        load()
        check_balance(self.decay, self.exploit_share)
        if not isinstance(self.num_clusters, int) or self.num_clusters < 1:
            raise ValueError(f"num_clusters: expected a whole number of at least 1, got {self.num_clusters!r}")
        for name in ("first_quotas", "quotas"):
            if not all(0 <= quota <= 1 for quota in getattr(self, name)):
                raise ValueError(f"{name}: expected fractions in [0, 1], got {getattr(self, name)}")

    @classmethod
    def published(cls, alpha: float = 0.3, warmup_steps: int = 8, seed: int = 0) -> CATPolicy:
        """The constants of the authors' published code, where they differ from the paper.

        Features pos_enc + 0.05 n_i; later selections without the convolution, and with quotas 3 : 2 : 1 : 1 : 1
        (in fifths of the exploit share, cut off at its end), the best cluster by noise alone.
        """
        return cls(
            alpha=alpha,
            warmup_steps=warmup_steps,
            seed=seed,
            feature_scale=0.05,
            convolve_always=False,
            quotas=(0.6, 0.4, 0.2, 0.2, 0.2),
            balance_top=False,
        )

    def select(self, seen: Observation, memory: Memory) -> Selection:
        """Tokens from the best clusters, then the stalest ones, exactly `seen.count` per image."""
        first = "labels" not in memory
        if first:
            memory["labels"] = self._cluster(seen)
        labels, noise = memory["labels"], seen.relative_noise
        clusters = self._clusters(seen)
        pooled = max_pool(noise, labels, clusters)
        if first or self.convolve_always:
            pooled = convolve(pooled, cluster_adjacency(labels, seen.grid, clusters))
        cluster_rank = ranks(pooled.norm(dim=-1)).gather(1, labels)
        norm = noise.norm(dim=-1)
        frequency = update_frequency(seen, memory, self.decay)
        stale = stale_first(frequency, norm)
        if first:
            preferred = self._preference(cluster_rank, norm, None, self.first_quotas, seen.count)
            return choose(preferred, seen.count, stale, seen.count)
        share = int(self.exploit_share * seen.count)
        preferred = self._preference(cluster_rank, norm, stale, self.quotas, share)
        return choose(preferred, share, stale, seen.count)

    def _clusters(self, seen: Observation) -> int:
        return min(self.num_clusters, seen.prediction.shape[1])

    def _cluster(self, seen: Observation) -> Tensor:
        features = seen.relative_noise
        if self.feature_scale is not None:
            features = self.feature_scale * seen.prediction.float().nan_to_num()
        encoding = positional_encoding(seen.grid, features.shape[-1], features.device)
        return kmeans(features + encoding, self._clusters(seen), self.seed)

    def _preference(
        self, cluster_rank: Tensor, norm: Tensor, stale: Tensor | None, quotas: tuple[float, ...], share: int
    ) -> Tensor:
        """Scores [B, N]: tokens within their cluster's quota by cluster order, then all others by noise."""
        limits = torch.zeros(cluster_rank.shape[1] + len(quotas), device=norm.device)
        for place, quota in enumerate(quotas):
            limits[place].fill_(int(quota * share))
        limit = limits[cluster_rank]
        by_noise = ranks_within(cluster_rank, norm)
        if stale is None:
            eligible = by_noise < limit
        else:
            halves = torch.where((cluster_rank > 0) | self.balance_top, (limit / 2).floor(), torch.zeros_like(limit))
            of_noise = by_noise < limit - halves
            by_staleness = ranks_within(cluster_rank, stale.masked_fill(of_noise, float("-inf")))
            eligible = of_noise | (by_staleness < halves)
        tokens = norm.shape[1]
        tier = torch.where(eligible, -cluster_rank * tokens, torch.full_like(cluster_rank, -tokens * tokens))
        return tier - torch.where(eligible, by_noise, ranks(norm))
