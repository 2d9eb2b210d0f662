"""Neighbourhoods on the grid, against plain Python."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.ops.grid import neighbourhood, smooth


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.floats(0.3, 3.0), st.integers(0, 1000))
def test_smoothed_values_are_means_of_neighbourhoods(extents: list[int], sigma: float, seed: int) -> None:
    grid = tuple(extents)
    values = torch.rand(2, math.prod(grid), generator=torch.Generator().manual_seed(seed))
    found = smooth(values, grid, [neighbourhood(extent, sigma, values.device) for extent in grid])
    places = torch.cartesian_prod(*(torch.arange(extent) for extent in grid)).view(-1, len(grid)).float()
    weights = (-(places[:, None] - places).square().sum(-1) / (2 * sigma**2)).exp()
    expected = values @ (weights / weights.sum(1, keepdim=True)).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
