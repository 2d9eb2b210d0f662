"""CAT Pruning's cluster-aware selection, complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.ops.cluster_graph import ClusterGraph, max_pool
from tokenprune.ops.grid import positional_encoding
from tokenprune.ops.kmeans import kmeans, memberships
from tokenprune.ops.ranking import places_within, ranks, staleness_order
from tokenprune.ops.selection import Selection
from tokenprune.policies._balance import check_balance, fill_up, update_frequency
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.policies.description import Between, Description, Variant

_SUITES = {"ablations": (8, 4), "rivals": (8, 4), "peers": (8, 4), "paper": (8,)}

TOP_CLUSTERS = 5
"""Among how many clusters the published code shares out the tokens of later selections, before it weighs them."""


@dataclass(frozen=True)
class CATPolicy(SelectionPolicy):
    """Cluster-aware token pruning: Cheng, Chen and Jia, arXiv 2502.00433, algorithm 2.

    At the first pruned step the tokens of each image are clustered once (k-means on relative noise plus a
    positional encoding). At every pruned step the same sum is max-pooled over the clusters, convolved once over the
    graph of touching clusters, and clusters are ranked by the norm of the result. The best clusters give tokens by
    noise and by low selection frequency; the least recently selected tokens fill up to exactly n.

    The defaults are the paper's form; where the paper says nothing, they are what its authors' code does. What that
    code does otherwise is in `published`. Each rule of the paper and of the code is in docs/cat.md.

    Args:
        num_clusters: K, at least 1.
        decay: a in the selection frequency f_i = a f_(i-1) + I_i, from 0 up to below 1.
        seed: seed of the k-means start.
        exploit_share: fraction of the selected tokens taken from the clusters after the first selection (which
            is from clusters alone), 0 to 1; the others are the stalest.
        first_quota: fraction of n that every cluster gives at the first selection, 0 to 1; clusters take their turn
            in their order until there are n.
        quota_weights: what clusters give at later selections, in their order and in fifths of the exploit share; the
            last weight holds for all further clusters. Each gives its quota by noise and, where it is balanced, half
            as many again by low frequency.
        feature_scale: None clusters on RN + positional encoding (paper); a number clusters on the encoding plus
            that multiple of the prediction (published code).
        pool_encoding: pool RN + positional encoding (paper) or RN alone (published code).
        convolve_always: convolve at every selection (paper) or only at the first (published code).
        balance_top: balance the best cluster by frequency, too (paper).
        balance_from: how many selections go before the first that is balanced, at least 1, as the first has nothing
            to balance by.

    Raises:
        ValueError: an argument is out of its range.
    """

    description: ClassVar[Description] = Description(
        "clusters by noise, balanced by staleness; see [cat.md](cat.md)",
        "CAT Pruning, arXiv 2502.00433",
        "k-means once a generation; pooling, graph convolution",
        variants=(
            Variant("CAT", "arXiv 2502.00433", suites=_SUITES, searched={"exploit_share": Between(0.0, 1.0)}),
            Variant("CAT, published constants", "arXiv 2502.00433", maker="published", suites=_SUITES, searched={}),
        ),
    )

    num_clusters: int = 20
    decay: float = 0.5
    seed: int = 0
    exploit_share: float = 0.25
    first_quota: float = 0.1
    quota_weights: tuple[float, ...] = (3.0, 2.0, 1.0)
    feature_scale: float | None = None
    pool_encoding: bool = True
    convolve_always: bool = True
    balance_top: bool = True
    balance_from: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_balance(self.decay, self.exploit_share)
        for name in ("num_clusters", "balance_from"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if not 0 <= self.first_quota <= 1:
            raise ValueError(f"first_quota: expected a fraction in [0, 1], got {self.first_quota}")
        if not self.quota_weights or not all(0 <= weight < float("inf") for weight in self.quota_weights):
            raise ValueError(f"quota_weights: expected numbers of at least 0, got {self.quota_weights}")

    @classmethod
    def published(cls, alpha: float = 0.3, warmup_steps: int = 8, seed: int = 0, compiled: bool = False) -> CATPolicy:
        """The authors' published code, which differs from their paper.

        It clusters on pos_enc + 0.05 n_i, pools RN alone, convolves at the first selection only, and takes tokens of
        the best cluster by noise alone. Given the same clusters and history it selects the tokens that the code
        selects, and where that selects fewer than n, those with the lowest frequency, besides.

        Args:
            alpha: as of the class.
            warmup_steps: as of the class.
            seed: as of the class; k-means differs from scikit-learn's, which the code uses.
            compiled: as in `qcache_compile`, the code's other version, for torch.compile: no cluster is balanced at
                the second selection, all are from the third on.
        """
        return cls(
            alpha=alpha,
            warmup_steps=warmup_steps,
            seed=seed,
            feature_scale=0.05,
            pool_encoding=False,
            convolve_always=False,
            balance_top=compiled,
            balance_from=2 if compiled else 1,
        )

    def select(self, seen: Observation, memory: Memory) -> Selection:
        """Tokens from the best clusters, then the stalest ones, exactly `seen.count` per image."""
        first = "frequency" not in memory
        noise = seen.relative_noise
        scores = self._score_clusters(seen, memory, noise, first)
        by_noise = noise.norm(dim=-1).argsort(dim=1, descending=True, stable=True)
        stale_order = staleness_order(update_frequency(seen, memory, self.decay), by_noise)
        chosen = self._from_clusters(seen, memory["labels"], scores, by_noise, stale_order, first)
        return fill_up(chosen, stale_order, seen.count)

    def _score_clusters(self, seen: Observation, memory: Memory, noise: Tensor, first: bool) -> Tensor:
        """How strong the relative noise [B, N, C] is in each cluster [B, K]; clusters are made where there are none."""
        clusters = min(self.num_clusters, noise.shape[1])
        if self.pool_encoding or "labels" not in memory:
            encoding = positional_encoding(seen.grid, noise.shape[-1], noise.device)
        if "labels" not in memory:
            scale = self.feature_scale
            features = noise if scale is None else scale * seen.prediction.float().nan_to_num()
            memory["labels"] = kmeans(features + encoding, clusters, self.seed)
        pooled = max_pool(noise + encoding if self.pool_encoding else noise, memory["labels"], clusters)
        if first or self.convolve_always:
            if "edges" not in memory:
                graph = ClusterGraph.of(memory["labels"], seen.grid, clusters)
                memory["edges"], memory["weights"] = graph.edges, graph.weights
            pooled = ClusterGraph(memory["edges"], memory["weights"]).convolve(pooled)
        return pooled.norm(dim=-1)

    def _from_clusters(
        self, seen: Observation, labels: Tensor, scores: Tensor, by_noise: Tensor, stale_order: Tensor, first: bool
    ) -> Tensor:
        """Which tokens [B, N] the clusters give, each up to its quota, in the order of their scores [B, K].

        The last cluster to give is cut off where there are enough: a balanced one in grid order, any other by noise.
        """
        clusters = scores.shape[1]
        members = memberships(labels, clusters)
        rank = ranks(scores.masked_fill(~members.any(2), -1.0))
        if first:
            share, quota = seen.count, torch.full_like(rank, int(self.first_quota * seen.count))
        else:
            share, quota = int(self.exploit_share * seen.count), self._quotas(seen.count, rank)
        place = places_within(labels, by_noise, clusters)
        eligible = place < quota.gather(1, labels)
        if seen.pruned_steps >= self.balance_from:
            balanced = (rank > 0) | self.balance_top
            by_staleness = places_within(labels, stale_order, clusters)
            eligible = eligible | (by_staleness < (balanced * quota // 2).gather(1, labels))
            in_grid = (members & eligible.unsqueeze(1)).cumsum(2).gather(1, labels.unsqueeze(1)).squeeze(1) - 1
            place = torch.where(balanced.gather(1, labels), in_grid, place)
        given = (members & eligible.unsqueeze(1)).sum(2)
        before = (given.unsqueeze(1) * (rank.unsqueeze(1) < rank.unsqueeze(2))).sum(2)
        return eligible & (before.gather(1, labels) + place < share)

    def _quotas(self, count: int, rank: Tensor) -> Tensor:
        """How many tokens each cluster gives by noise at later selections [B, K], from the clusters' ranks [B, K]."""
        unit = int(count // TOP_CLUSTERS * self.exploit_share)
        by_rank = [min(count, int(weight * unit)) for weight in self.quota_weights]
        quota = torch.full_like(rank, by_rank[-1])
        for place, tokens in enumerate(by_rank[:-1]):
            quota = quota.masked_fill(rank == place, tokens)
        return quota
