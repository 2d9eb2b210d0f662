"""Orders and ranks of tokens by a score, over all of them or within clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.kmeans import memberships


def places_in(order: Tensor, numbers: Tensor | None = None) -> Tensor:
    """Place of every token in an order, every row a permutation of the tokens [B, N].

    Args:
        order: the tokens.
        numbers: 0 to N - 1 [B, N], where they are at hand.
    """
    if numbers is None:
        numbers = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, numbers)


def ranks(scores: Tensor) -> Tensor:
    """Place of every token when its row [B, N] is sorted, highest score first; ties in grid order."""
    return places_in(scores.argsort(dim=1, descending=True, stable=True))


def by_cluster(labels: Tensor, orders: Tensor) -> Tensor:
    """Tokens [B, R, N] cluster after cluster, those of each in the order that they have in R orders of all tokens.

    Args:
        labels: cluster of every token [B, N].
        orders: every row a permutation of the tokens [B, R, N].
    """
    own = labels.unsqueeze(1).expand_as(orders).gather(2, orders)
    return orders.gather(2, own.argsort(dim=2, stable=True))


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
