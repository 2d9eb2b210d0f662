"""Products with attention maps that are never held as a whole."""

from __future__ import annotations

import torch
from torch import Tensor


def received(query: Tensor, key: Tensor, scale: float, weights: Tensor, chunk: int) -> Tensor:
    """What every token receives through its heads' attention maps: A^T w for each head [B, H, N], float32.

    A = softmax(scale * query key^T) over the keys. Its rows are made for `chunk` queries at a time and thrown away, so
    the largest tensor has B * H * chunk * N numbers, of the queries' type; sums over chunks are kept in float32. Cost:
    N^2 D multiplications for each head, half of an attention.

    Args:
        query: [B, H, N, D].
        key: [B, H, N, D].
        scale: factor of the products before the softmax.
        weights: w, what every query has to give [B, H, N]; around 1, which half precision holds well.
        chunk: queries at a time.
    """
    keys = key.transpose(-2, -1)
    total = torch.zeros(*key.shape[:-1], device=key.device)
    for queries, share in zip(query.split(chunk, dim=2), weights.to(query.dtype).split(chunk, dim=2), strict=True):
        rows = (scale * queries @ keys).softmax(dim=-1)
        total += (share.unsqueeze(-2) @ rows).squeeze(-2)
    return total


def column_means(query: Tensor, key: Tensor, scale: float, chunk: int) -> Tensor:
    """Mean attention that every token receives from all queries of all heads [B, N], float32; adds up to 1."""
    weights = torch.ones(query.shape[:-1], device=query.device)
    together = received(query, key, scale, weights, chunk).mean(dim=1)
    return together / together.sum(dim=-1, keepdim=True)


def page_rank(query: Tensor, key: Tensor, scale: float, iterations: int, chunk: int) -> Tensor:
    """Weighted PageRank on each head's attention map, root mean square over the heads [B, N], float32; adds up to 1.

    From s = 1 / N on, s <- A^T s; the rows of A add up to 1, and so does s, up to rounding, which is taken out. On the
    way s is kept N times as large.
    """
    ranks = torch.ones(query.shape[:-1], device=query.device)
    for _ in range(iterations):
        ranks = received(query, key, scale, ranks, chunk)
        ranks = ranks / ranks.mean(dim=-1, keepdim=True)
    together = ranks.square().mean(dim=1).sqrt()
    return together / together.sum(dim=-1, keepdim=True)


def check_chunk(chunk: int) -> None:
    """Raise ValueError unless the setting is a whole number of at least 1."""
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk: expected a whole number of at least 1, got {chunk!r}")
