"""The cluster graph of CAT Pruning on torch-geometric: pooling per cluster and one untrainable convolution.

torch-geometric is imported inside the functions, so that `import tokenprune` stays light, and by `load` when a policy
that needs it is made, so that no step waits for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.grid import TokenGrid, neighbour_edges


def load() -> None:
    """Import torch-geometric, before the first selection needs it."""
    import torch_geometric.nn
    import torch_geometric.utils  # noqa: F401


def max_pool(features: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Element-wise maximum over each cluster's tokens [B, K, C]; 0 for an empty cluster.

    Args:
        features: [B, N, C].
        labels: cluster of every token [B, N].
        clusters: K.
    """
    from torch_geometric.utils import scatter

    batch = len(features)
    flat_labels = (labels + clusters * torch.arange(batch, device=labels.device).unsqueeze(1)).flatten()
    pooled = scatter(features.flatten(0, 1), flat_labels, dim=0, dim_size=batch * clusters, reduce="max")
    return pooled.view(batch, clusters, -1)


def cluster_adjacency(labels: Tensor, grid: TokenGrid, clusters: int) -> Tensor:
    """Which clusters touch on the grid [B, K, K], 0 or 1, none touching itself."""
    source, target = neighbour_edges(grid, labels.device)
    pairs = labels[:, source] * clusters + labels[:, target]
    touching = torch.zeros(len(labels), clusters * clusters, device=labels.device)
    touching = touching.scatter_(1, pairs, 1.0).view(-1, clusters, clusters)
    return touching * (1 - torch.eye(clusters, device=labels.device))


def convolve(pooled: Tensor, adjacency: Tensor) -> Tensor:
    """One untrainable graph convolution: every cluster plus the mean of its neighbours [B, K, C].

    The graph is the complete one, weighted by the adjacency over the degree: its shape never changes, whatever
    clusters touch, so nothing is read back from the device.
    """
    from torch_geometric.nn import SimpleConv

    batch, clusters, _ = pooled.shape
    weight = (adjacency / adjacency.sum(-1, keepdim=True).clamp_min(1)).transpose(1, 2).flatten()
    nodes = torch.arange(batch * clusters, device=pooled.device).view(batch, clusters)
    edges = torch.stack([nodes.unsqueeze(2).expand(-1, -1, clusters), nodes.unsqueeze(1).expand(-1, clusters, -1)])
    convolution = SimpleConv(aggr="sum", combine_root="sum")
    return convolution(pooled.flatten(0, 1), edges.flatten(1), weight).view_as(pooled)
