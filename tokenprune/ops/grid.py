"""Geometry of the token grid: where each token lies, and which tokens are neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

TokenGrid: TypeAlias = tuple[int, ...]
"""Extents of the token grid in row-major order: (h, w), or (t, h, w) for video."""


def num_tokens(grid: TokenGrid) -> int:
    """N, the number of tokens on the grid."""
    return math.prod(grid)


def positions(grid: TokenGrid, device: torch.device) -> Tensor:
    """Coordinates [N, dimensions] of every token as fractions of the extents, i/h and j/w, each in [0, 1)."""
    axes = [torch.arange(extent, device=device) / extent for extent in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def positional_encoding(grid: TokenGrid, channels: int, device: torch.device) -> Tensor:
    """CAT Pruning's encoding [N, channels]: the channels split evenly over the axes, each holding its coordinate."""
    coordinates = positions(grid, device)
    share = math.ceil(channels / len(grid))
    return coordinates.repeat_interleave(share, dim=1)[:, :channels]


def spread(mask: Tensor, grid: TokenGrid, shape: Sequence[int]) -> Tensor | None:
    """A mask of tokens [B, N] as one that broadcasts to latents; None where their shape does not tell how.

    Args:
        mask: of tokens.
        grid: of the N tokens.
        shape: of the latents: [B, N, C], or [B, C, ...] with extents that are multiples of the grid's.
    """
    if len(shape) == 3 and shape[1] == mask.shape[1]:
        return mask.unsqueeze(-1)
    extents = shape[2:]
    if len(extents) != len(grid) or any(whole % part for whole, part in zip(extents, grid, strict=True)):
        return None
    found = mask.view(len(mask), 1, *grid)
    for axis, (whole, part) in enumerate(zip(extents, grid, strict=True), start=2):
        found = found.repeat_interleave(whole // part, dim=axis)
    return found


def neighbourhood(extent: int, sigma: float, device: torch.device) -> Tensor:
    """Gaussian weights of sigma tokens along an axis [extent, extent]; cut off at the borders, rows add up to 1."""
    places = torch.arange(extent, device=device, dtype=torch.float32)
    weights = (-(places.unsqueeze(1) - places).square() / (2 * sigma**2)).exp()
    return weights / weights.sum(1, keepdim=True)


def smooth(values: Tensor, grid: TokenGrid, weights: Sequence[Tensor]) -> Tensor:
    """Values [B, N] averaged over their neighbourhood, by weights along each axis of the grid."""
    on_grid = values.unflatten(1, grid)
    for axis, of_axis in enumerate(weights, start=1):
        on_grid = (on_grid.movedim(axis, -1) @ of_axis.T).movedim(-1, axis)
    return on_grid.flatten(1)


def neighbour_edges(grid: TokenGrid, device: torch.device) -> Tensor:
    """Edges [2, E] between neighbours along each axis, both directions."""
    tokens = torch.arange(num_tokens(grid), device=device).view(grid)
    edges = []
    for axis, extent in enumerate(grid):
        source, target = tokens.narrow(axis, 0, extent - 1), tokens.narrow(axis, 1, extent - 1)
        edges += [torch.stack([source.flatten(), target.flatten()]), torch.stack([target.flatten(), source.flatten()])]
    return torch.cat(edges, dim=1)
