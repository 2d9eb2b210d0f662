"""Ranks of tokens by a score, over all of them or within clusters."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(scores: Tensor) -> Tensor:
    """Place of every token when its row [B, N] is sorted, highest score first; ties in grid order."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def ranks_within(groups: Tensor, scores: Tensor) -> Tensor:
    """Place [B, N] of every token among those of its own group [B, N], highest score first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    by_group = groups.gather(1, order).argsort(dim=1, stable=True)
    order = order.gather(1, by_group)
    places = torch.arange(groups.shape[1], device=groups.device).expand_as(order).contiguous()
    sorted_groups = groups.gather(1, order)
    starts = torch.searchsorted(sorted_groups, sorted_groups)
    return torch.empty_like(order).scatter_(1, order, places - starts)


def stale_first(frequency: Tensor, noise: Tensor) -> Tensor:
    """Scores [B, N] that put the lowest frequency first and, among equals, the highest noise."""
    by_noise = noise.argsort(dim=1, descending=True, stable=True)
    by_frequency = frequency.gather(1, by_noise).argsort(dim=1, stable=True)
    order = by_noise.gather(1, by_frequency)
    places = torch.arange(noise.shape[1], device=noise.device, dtype=torch.float32).expand_as(noise)
    return torch.empty_like(places.contiguous()).scatter_(1, order, -places)
