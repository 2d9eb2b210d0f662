"""The cluster graph of CAT Pruning on torch-geometric: pooling per cluster and one untrainable convolution.

torch-geometric is imported inside the functions, so that neither `import tokenprune` nor making a policy waits for it:
the first selection does, once a process. torch-scatter is optional; the results are the same without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from tokenprune.ops.grid import TokenGrid, neighbour_edges


def nodes_of(labels: Tensor, clusters: int) -> Tensor:
    """Place [B, N] of every token's cluster among the B * K clusters of all images, from its label [B, N] below K."""
    return labels + clusters * torch.arange(len(labels), device=labels.device).unsqueeze(1)


def max_pool(features: Tensor, nodes: Tensor, clusters: int) -> Tensor:
    """Element-wise maximum over each cluster's tokens [B, K, C]; 0 for an empty cluster.

    Args:
        features: [B, N, C].
        nodes: `nodes_of` their labels [B, N].
        clusters: K.
    """
    from torch_geometric.utils import scatter

    batch = len(features)
    pooled = scatter(features.flatten(0, 1), nodes.flatten(), dim=0, dim_size=batch * clusters, reduce="max")
    return pooled.view(batch, clusters, -1)


def cluster_adjacency(labels: Tensor, grid: TokenGrid, clusters: int) -> Tensor:
    """Which clusters touch on the grid [B, K, K], 0 or 1, none touching itself."""
    source, target = neighbour_edges(grid, labels.device)
    pairs = labels[:, source] * clusters + labels[:, target]
    touching = torch.zeros(len(labels), clusters * clusters, device=labels.device)
    touching = touching.scatter_(1, pairs, 1.0).view(-1, clusters, clusters)
    return touching * (1 - torch.eye(clusters, device=labels.device))


@dataclass(frozen=True)
class ClusterGraph:
    """Which clusters touch, in a form whose shape depends on nothing but B and K: so nothing is read from the device.

    Every pair of clusters has an edge. Where two do not touch it carries the weight 0 for sums, and for maxima comes
    from the cluster that it leads to, which is among those that count anyway.

    Attributes:
        edges: for each pair its source for sums and its target, its source for maxima and its target
            [B, 4, K * K], places among the B * K clusters of all images.
        weights: of the pairs' sources in the sum of the two linear aggregations [B, K * K].
    """

    edges: Tensor
    weights: Tensor

    @classmethod
    def of(cls, labels: Tensor, grid: TokenGrid, clusters: int) -> ClusterGraph:
        """The graph of K clusters from the cluster of every token [B, N]."""
        adjacency = cluster_adjacency(labels, grid, clusters) + torch.eye(clusters, device=labels.device)
        nodes = torch.arange(len(labels) * clusters, device=labels.device).view(-1, clusters)
        target, source = nodes.unsqueeze(2).expand_as(adjacency), nodes.unsqueeze(1).expand_as(adjacency)
        edges = torch.stack([source, target, torch.where(adjacency > 0, source, target), target], dim=1)
        return cls(edges.flatten(2), (adjacency + adjacency / adjacency.sum(2, keepdim=True)).flatten(1))

    def convolve(self, pooled: Tensor) -> Tensor:
        """One untrainable graph convolution [B, K, C], CAT Pruning's: sum + mean + max.

        Each is over a cluster and those that touch it.

        Args:
            pooled: [B, K, C].
        """
        for_sums, for_maxima = self.edges.transpose(0, 1).flatten(1).chunk(2)
        nodes = pooled.flatten(0, 1)
        linear = _convolution("sum")(nodes, for_sums, self.weights.flatten())
        return (linear + _convolution("max")(nodes, for_maxima)).view_as(pooled)


@cache
def _convolution(aggregation: str) -> nn.Module:
    """A convolution without parameters, kept as making one takes longer than using it."""
    from torch_geometric.nn import SimpleConv

    return SimpleConv(aggr=aggregation)
