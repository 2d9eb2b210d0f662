"""CAT Pruning's cluster-aware selection, complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.ops.cluster_graph import ClusterGraph, max_pool, nodes_of
from tokenprune.ops.grid import positional_encoding
from tokenprune.ops.kmeans import kmeans, memberships
from tokenprune.ops.ranking import by_cluster, places_in, staleness_order
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
        self._make_clusters(seen, memory, noise)
        scores = self._score_clusters(memory, noise, first)
        by_noise = noise.norm(dim=-1).argsort(dim=1, descending=True, stable=True)
        stale_order = staleness_order(update_frequency(seen, memory, self.decay), by_noise)
        behind = places_in(stale_order, memory["grid"])
        chosen = self._from_clusters(seen, memory, scores, by_noise, stale_order, behind, first)
        return fill_up(chosen, behind, seen.count)

    def _make_clusters(self, seen: Observation, memory: Memory, noise: Tensor) -> None:
        """Cluster the tokens by their relative noise [B, N, C], and keep what does not change while clusters do not.

        That is the clusters' graph, and `members` [B, 3, N]: every token's label, and twice all labels in their order,
        beside which `in_cluster` [B, N] counts from 0 in each cluster.
        """
        if "encoding" not in memory:
            encoding = positional_encoding(seen.grid, noise.shape[-1], noise.device)
            memory["encoding"] = encoding.expand(len(noise), -1, -1)
        clusters = min(self.num_clusters, noise.shape[1])
        if "labels" not in memory:
            scale = self.feature_scale
            features = noise if scale is None else scale * seen.prediction.float().nan_to_num()
            memory["labels"] = kmeans(features + memory["encoding"], clusters, self.seed)
        if "members" not in memory:
            labels = memory["labels"]
            graph = ClusterGraph.of(labels, seen.grid, clusters)
            memory["edges"], memory["weights"], memory["nodes"] = graph.edges, graph.weights, nodes_of(labels, clusters)
            memory["empty"] = ~memberships(labels, clusters).any(2)
            memory["grid"] = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
            in_order = labels.sort(dim=1).values
            memory["members"] = torch.stack([labels, in_order, in_order], dim=1)
            memory["in_cluster"] = memory["grid"] - torch.searchsorted(in_order, in_order)

    def _score_clusters(self, memory: Memory, noise: Tensor, first: bool) -> Tensor:
        """How strong the relative noise [B, N, C] is in each cluster [B, K]; -1 where that is empty."""
        features, empty = noise + memory["encoding"] if self.pool_encoding else noise, memory["empty"]
        pooled = max_pool(features, memory["nodes"], empty.shape[1])
        if first or self.convolve_always:
            pooled = ClusterGraph(memory["edges"], memory["weights"]).convolve(pooled)
        return pooled.norm(dim=-1).masked_fill(empty, -1.0)

    def _from_clusters(
        self,
        seen: Observation,
        memory: Memory,
        scores: Tensor,
        by_noise: Tensor,
        stale_order: Tensor,
        behind: Tensor,
        first: bool,
    ) -> Tensor:
        """The tokens [B, m] that clusters give, each up to its quota, in the order of their scores [B, K].

        The last cluster to give is cut off where there are enough: a balanced one in grid order, any other by noise.
        Where clusters give fewer than m, the stalest of the other tokens make up for them.

        Args:
            seen: what is known.
            memory: the clusters.
            scores: of the clusters.
            by_noise: tokens from the most relative noise to the least [B, N].
            stale_order: tokens from the lowest frequency to the highest [B, N].
            behind: their places in that order [B, N].
            first: whether no tokens were selected before.
        """
        balances = seen.pruned_steps >= self.balance_from
        orders = torch.stack([by_noise, stale_order], dim=1) if balances else by_noise.unsqueeze(1)
        by_rank = self._by_rank(seen, memory, first, balances)
        ranked = scores.argsort(dim=1, descending=True, stable=True).unsqueeze(1).expand_as(by_rank)
        members = memory["members"][:, : by_rank.shape[1]]
        of_token = torch.empty_like(ranked).scatter_(2, ranked, by_rank).gather(2, members)
        rank, quotas = of_token[:, 0], of_token[:, 1:]
        gives = memory["in_cluster"].unsqueeze(1) < quotas
        eligible = torch.empty_like(gives).scatter_(2, by_cluster(memory["labels"], orders), gives).any(1)
        place = memory["grid"]
        if not balances:
            place = places_in(by_noise, place)
        elif not self.balance_top:
            place = torch.where(rank > -scores.shape[1] * rank.shape[1], place, places_in(by_noise, place))
        share = seen.count if first else int(self.exploit_share * seen.count)
        return torch.where(eligible, rank + place, behind).topk(share, largest=False, sorted=False).indices

    def _by_rank(self, seen: Observation, memory: Memory, first: bool, balances: bool) -> Tensor:
        """For each rank of a cluster, from 0 on [B, 2 or 3, K]: N times the rank less K, and how many tokens it gives.

        By noise, and by low frequency where clusters are balanced; made once for each number of selected tokens.
        """
        name = f"{seen.count} tokens, {'first' if first else 'later'}, {'balanced' if balances else 'by noise'}"
        if name not in memory:
            quotas = [int(self.first_quota * seen.count)] * 2 if first else self._quotas(seen.count)
            stale = [quotas[0] // 2 if self.balance_top else 0, *(quota // 2 for quota in quotas[1:])]
            clusters, tokens = memory["empty"].shape[1], memory["grid"].shape[1]
            ranks = tokens * (memory["grid"][0, :clusters] - clusters)
            rows = [ranks, *(_row(ranks, given) for given in (quotas, stale)[: 1 + balances])]
            memory[name] = torch.stack(rows).expand(len(memory["empty"]), -1, -1)
        return memory[name]

    def _quotas(self, count: int) -> list[int]:
        """How many tokens the clusters give by noise at later selections, in their order; the last for all others."""
        unit = int(count // TOP_CLUSTERS * self.exploit_share)
        found = [min(count, int(weight * unit)) for weight in self.quota_weights]
        return [*found, found[-1]]


def _row(like: Tensor, values: list[int]) -> Tensor:
    """The values [K], the last one for all further places; nothing is copied from the host."""
    row = torch.full_like(like, values[-1])
    for place, value in zip(row, values, strict=False):
        place.fill_(value)
    return row
