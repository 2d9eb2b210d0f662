"""Batched k-means in torch: no reading back from the device, the same result whatever else is in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ITERATIONS = 20
ROUNDING = 1e-5
"""By how much sums of distances that are equal may differ, as a share."""


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Squared Euclidean distances [B, N, K] from points [B, N, C] to centres [B, K, C]."""
    cross = points @ centres.transpose(1, 2)
    return points.square().sum(-1, keepdim=True) - 2 * cross + centres.square().sum(-1).unsqueeze(1)


def plus_plus_start(points: Tensor, clusters: int, seed: int) -> Tensor:
    """First centres [B, K, C], spread out as greedy k-means++ does it (Arthur and Vassilvitskii, 2007).

    For every centre a few points are drawn with probability proportional to their squared distance to the nearest
    centre so far; the one that brings all points nearest is taken, the first of those that do so up to rounding: two
    points that are near to each other alone bring all points equally near. All images share the random numbers, so that
    an image's centres do not depend on its batch.
    """
    batch, tokens, channels = points.shape
    trials = 2 + int(math.log(clusters))
    generator = torch.Generator(points.device).manual_seed(seed)
    uniform = torch.rand(clusters, trials, generator=generator, device=points.device)
    nearest = points.new_ones(batch, tokens)
    centres: list[Tensor] = []
    for draws in uniform:
        cumulative = nearest.cumsum(1)
        drawn = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).clamp_max(tokens - 1)
        candidates = points.gather(1, drawn.unsqueeze(-1).expand(-1, -1, channels))
        distances = squared_distances(points, candidates).clamp_min(0)
        if centres:
            distances = torch.minimum(distances, nearest.unsqueeze(-1))
        totals = distances.sum(1, keepdim=True)
        best = (totals <= totals.amin(-1, keepdim=True) * (1 + ROUNDING)).int().argmax(-1, keepdim=True)
        nearest = distances.gather(2, best.expand(-1, tokens, -1)).squeeze(-1)
        centres.append(candidates.gather(1, best.expand(-1, -1, channels)))
    return torch.cat(centres, dim=1)


def memberships(labels: Tensor, clusters: int) -> Tensor:
    """Which cluster holds which token [B, K, N], bool; unlike `one_hot` it reads nothing back from the device."""
    return labels.unsqueeze(1) == torch.arange(clusters, device=labels.device).unsqueeze(1)


def lloyd(points: Tensor, centres: Tensor, iterations: int = ITERATIONS) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations from given centres; an empty cluster keeps its centre.

    Returns:
        Labels [B, N], int64, and the centres [B, K, C] they belong to.
    """
    clusters = centres.shape[1]
    for _ in range(iterations):
        labels = squared_distances(points, centres).argmin(-1)
        members = memberships(labels, clusters).to(points.dtype)
        sizes = members.sum(-1, keepdim=True)
        centres = torch.where(sizes > 0, (members @ points) / sizes.clamp_min(1), centres)
    return squared_distances(points, centres).argmin(-1), centres


def kmeans(points: Tensor, clusters: int, seed: int, iterations: int = ITERATIONS) -> Tensor:
    """Cluster labels [B, N] of points [B, N, C] in K = clusters clusters, deterministic under `seed`."""
    return lloyd(points, plus_plus_start(points, clusters, seed), iterations)[0]
