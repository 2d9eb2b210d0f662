"""Orders and ranks of tokens by a score, over all of them or within clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.kmeans import memberships


def ranks(scores: Tensor) -> Tensor:
    """Place of every token when its row [B, N] is sorted, highest score first; ties in grid order."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def places_within(labels: Tensor, order: Tensor, clusters: int) -> Tensor:
    """Place [B, N] of every token among those of its own cluster, all tokens being taken in a given order.

    Args:
        labels: cluster of every token [B, N], below K.
        order: every row a permutation of the tokens [B, N].
        clusters: K; few, as K * N numbers are held for each image.
    """
    in_order = labels.gather(1, order)
    so_far = memberships(in_order, clusters).cumsum(2)
    return torch.empty_like(order).scatter_(1, order, so_far.gather(1, in_order.unsqueeze(1)).squeeze(1) - 1)


def staleness_order(frequency: Tensor, by_noise: Tensor) -> Tensor:
    """Tokens [B, N] from the lowest frequency to the highest; among equals they stay in the order `by_noise` [B, N]."""
    return by_noise.gather(1, frequency.gather(1, by_noise).argsort(dim=1, stable=True))
