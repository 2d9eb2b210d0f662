"""Products with attention maps made row by row: what they are, and that the whole map never is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenprune import AttentionRankPolicy, SelectionPolicy, TocaPolicy
from tokenprune.ops.attention_map import column_means, page_rank, received


def heads(shape: tuple[int, int, int, int], seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Queries and keys [G, H, N, D] whose attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (2 * torch.randn(shape, generator=generator) for _ in range(2))
    return query.to(dtype), key.to(dtype)


def maps(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Whole maps [G, H, N, N] in double precision, by the definition."""
    products = torch.einsum("ghid,ghjd->ghij", query.double(), key.double()) * scale
    powers = (products - products.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def dense_page_rank(query: Tensor, key: Tensor, scale: float, iterations: int) -> Tensor:
    """The same without chunks: the power of each head's whole map, applied to the uniform distribution."""
    transition = maps(query, key, scale).transpose(-2, -1)
    uniform = torch.full((query.shape[2], 1), 1 / query.shape[2], dtype=torch.float64)
    ranks = (torch.linalg.matrix_power(transition, iterations) @ uniform).squeeze(-1)
    together = ranks.square().mean(1).sqrt()
    return together / together.sum(-1, keepdim=True)


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 5))


@given(shape=SHAPES, seed=st.integers(0, 1000), chunk=st.integers(1, 25), iterations=st.integers(1, 5))
def test_page_rank_is_the_dense_one_whatever_the_chunk(
    shape: tuple[int, int, int, int], seed: int, chunk: int, iterations: int
) -> None:
    query, key = heads(shape, seed)
    found = page_rank(query, key, 0.7, iterations, chunk)
    torch.testing.assert_close(found.double(), dense_page_rank(query, key, 0.7, iterations), atol=1e-6, rtol=1e-4)
    assert found.dtype == torch.float32


@given(shape=SHAPES, seed=st.integers(0, 1000), chunk=st.integers(1, 25))
def test_column_means_are_the_dense_ones_whatever_the_chunk(
    shape: tuple[int, int, int, int], seed: int, chunk: int
) -> None:
    query, key = heads(shape, seed)
    expected = maps(query, key, 0.7).mean((1, 2))
    torch.testing.assert_close(column_means(query, key, 0.7, chunk).double(), expected, atol=1e-6, rtol=1e-4)


def test_received_by_hand() -> None:
    """Query 0 attends to both keys alike, query 1 three to one; they give 2 and 8."""
    query, key = torch.tensor([[[[0.0], [1.0]]]]), torch.tensor([[[[3.0], [1.0]]]]).log()
    assert received(query, key, 1.0, torch.tensor([[[2.0, 8.0]]]), 1).flatten().tolist() == pytest.approx([7, 3])
    assert page_rank(query, key, 1.0, 1, 2).flatten().tolist() == pytest.approx([5 / 8, 3 / 8])
    assert page_rank(query, key, 1.0, 2, 2).flatten().tolist() == pytest.approx([19 / 32, 13 / 32])


def test_a_head_that_singles_tokens_out_counts_for_more() -> None:
    """One head has everything on token 0, the other spreads it over 1 to 4: root mean square, not the mean."""
    key = torch.zeros(1, 2, 5, 1)
    key[0, 0, 0], key[0, 1, 0] = 60.0, -60.0
    rank = page_rank(torch.ones(1, 2, 5, 1), key, 1.0, 2, 5)[0]
    assert rank.tolist() == pytest.approx([1 / 2, *[1 / 8] * 4])
    mixed = page_rank(torch.ones(1, 2, 5, 1), key * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), 1.0, 2, 5)[0]
    parts = [(0.5 * (1 + 0.2**2)) ** 0.5, *[(0.5 * 0.2**2) ** 0.5] * 4]
    assert mixed.tolist() == pytest.approx([part / sum(parts) for part in parts])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
def test_half_precision_is_right_to_its_rounding(dtype: torch.dtype, error: float) -> None:
    query, key = heads((1, 2, 300, 8), 0, dtype)
    expected = dense_page_rank(query, key, 0.3, 3)
    found = page_rank(query, key, 0.3, 3, 16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=error)
    means = column_means(query, key, 0.3, 16).double()
    torch.testing.assert_close(means, maps(query, key, 0.3).mean((1, 2)), atol=0, rtol=error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_are_made_in_the_type_of_the_model(dtype: torch.dtype) -> None:
    query, key = heads((1, 2, 40, 8), 0, dtype)
    with Types(2 * 16 * 40) as types:
        page_rank(query, key, 0.3, 3, 16)
    assert types.found == {dtype}


class Types(TorchDispatchMode):
    """The types of all tensors of at least so many numbers that operators make."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self._least = least
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        large = (leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor) and leaf.numel() >= self._least)
        self.found |= {leaf.dtype for leaf in large}
        return made


class Sizes(TorchDispatchMode):
    """The most numbers in a tensor that any operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.largest = max(self.largest, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)), 0)
        return made


@pytest.mark.parametrize("policy_type", [AttentionRankPolicy, TocaPolicy])
@pytest.mark.parametrize("chunk", [16, 100, 512])
def test_no_tensor_is_larger_than_a_chunk_of_the_map(policy_type: type[SelectionPolicy], chunk: int) -> None:
    query, key = heads((2, 3, 512, 4), 0)
    with Sizes() as sizes:
        policy_type(chunk=chunk).weigh_attention(query, key, 0.5)
    assert sizes.largest == 2 * 3 * chunk * 512


@pytest.mark.parametrize("policy_type", [AttentionRankPolicy, TocaPolicy])
@pytest.mark.parametrize("chunk", [0, 1.5])
def test_settings_out_of_range(policy_type: type[SelectionPolicy], chunk: float) -> None:
    with pytest.raises(ValueError, match=rf"chunk: expected a whole number( of at least 1)?, got {chunk}"):
        policy_type(chunk=chunk)
