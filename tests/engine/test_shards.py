"""Where tokens lie that are divided over ranks; what ranks tell each other is tested in tests/integration/parallel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import AttentionError, AttentionSite, Hold, Selection, TokenArgument
from tokenprune.engine.attention_hooks import serve
from tokenprune.engine.attention_state import AttentionState, Coming, prepare
from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.rows import Rows, gather
from tokenprune.engine.shards import ALONE, Shards, in_order

CPU = torch.device("cpu")


@given(
    degree=st.integers(2, 4),
    image=st.integers(1, 3),
    text=st.integers(0, 3),
    layout=st.sampled_from(["text-image", "image-text"]),
)
def test_order_undoes_the_division(degree: int, image: int, text: int, layout: str) -> None:
    """Each rank has a chunk of the text and one of the image; attention sees one rank's tokens after the other's."""
    tokens, texts = image * degree, text * degree
    streams = torch.arange(texts + tokens).split([texts, tokens] if layout == "text-image" else [tokens, texts])
    parts = [torch.cat([stream.chunk(degree)[rank] for stream in streams if len(stream)]) for rank in range(degree)]
    order = Shards(degree=degree).order(layout, tokens, texts + tokens, CPU)
    assert torch.equal(in_order(torch.cat(parts), 0, order), torch.arange(texts + tokens))


def test_order_of_two_streams() -> None:
    """Four tokens on two ranks, each with a row in both streams: those of rank 0 are 0, 1 and 4, 5."""
    order = Shards(degree=2).order("image-image", 4, 8, CPU)
    assert torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])[order].tolist() == list(range(8))


def test_order_is_made_once() -> None:
    shards = Shards(degree=2)
    assert shards.order("text-image", 4, 6, CPU) is shards.order("text-image", 4, 6, CPU)
    assert shards.order("image", 4, 4, CPU) is None
    assert ALONE.order("text-image", 4, 6, CPU) is None


def test_each_rank_has_a_part_of_the_selected_tokens() -> None:
    selection = Selection(torch.tensor([[0, 1, 2, 7], [1, 3, 5, 6]]), 8)
    parts = [Shards(degree=2, rank=rank).own(selection).index.tolist() for rank in range(2)]
    assert parts == [[[0, 1], [1, 3]], [[2, 7], [5, 6]]]
    assert ALONE.own(selection) is selection


def test_divided_arguments_are_joined_before_rows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight positions, of which this second of two ranks was given the last four; once for all blocks."""
    positions, shards, joined = torch.arange(8.0)[None, :, None], Shards(degree=2, rank=1), []

    def joined_with(self: Shards, part: torch.Tensor, dim: int) -> torch.Tensor:
        joined.append(dim)
        return torch.cat([positions[:, :4], part], dim)

    monkeypatch.setattr(Shards, "joined", joined_with)
    own = Rows(shards.own(Selection(torch.tensor([[0, 1, 2, 7]]), 8)), ["image"], shards=shards)
    given_here, argument = positions[:, 4:].clone(), TokenArgument("positions")
    for _ in range(3):
        assert gather(own, argument, given_here).flatten().tolist() == [2, 7]
    assert joined == [1]
    for other in (torch.zeros(1, 2, 1), torch.zeros(1, 8, 1)):  # computed rows, and what is no row of this rank's
        assert gather(own, argument, other) is other


def test_one_process_agrees_with_itself() -> None:
    tensor = torch.arange(3)
    assert ALONE.agreed(tensor) is ALONE.total(tensor) is ALONE.joined(tensor, 0) is tensor
    assert ALONE.agree_on(tensor)
    assert ALONE.size == 1


# What attention is given on two ranks: [text of the first, image of the first, text of the second, ...] --------------

B, N, T, H, D = 2, 8, 4, 2, 4
CHOSEN = Selection(torch.tensor([[0, 1, 2, 7], [1, 3, 5, 6]]), N)
SHARDS = Shards(degree=2)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dealt(sequence: Tensor, layout: str, tokens: int, dim: int = 2) -> Tensor:
    """A sequence of image and text tokens as the ranks' parts of it, one after the other."""
    text = sequence.shape[dim] - tokens
    streams = sequence.split([text, tokens] if layout == "text-image" else [tokens, text], dim)
    return torch.cat([stream.chunk(2, dim)[rank] for rank in range(2) for stream in streams], dim)


def attend(state: AttentionState, coming: Coming, *given: Tensor | None) -> Tensor:
    prepare([state], coming)
    mode = serve(state)
    assert mode is not None
    output = mode.service.attend(*given)
    mode.service.end(output, (None, None))
    return output


@pytest.mark.parametrize("layout", ["text-image", "image-text"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_the_parts_of_two_ranks(layout: Any, masked: bool) -> None:
    """A pruned call equals attention to all keys, of which the computed ones are new."""
    state, branch = AttentionState(AttentionSite("attn", layout)), BranchCache(Hold())
    query, key, value, new_key = (draw(B, H, N + T, D, seed=seed) for seed in range(4))
    first = 0 if layout == "text-image" else N
    mask = torch.ones(B, 1, 1, N + T, dtype=torch.bool)
    mask[1, ..., first + 1] = not masked
    given_mask = mask if masked else None
    coming = Coming(branch, torch.zeros(()), None, N, B, B, shards=SHARDS)
    full = attend(state, coming, *(dealt(each, layout, N) for each in (query, key, value)), dealt(mask, layout, N, -1))
    torch.testing.assert_close(full, dealt(F.scaled_dot_product_attention(query, key, value, mask), layout, N))

    rows = Rows(CHOSEN, (), T)
    fresh = rows.sequence(layout, N + T)
    taken = [dealt(fresh.take(each, 2, 0), layout, CHOSEN.count) for each in (query, new_key, value)]
    own_mask = dealt(fresh.take(mask.expand(B, 1, 1, -1), 3, 0), layout, CHOSEN.count, -1) if masked else None
    found = attend(state, Coming(branch, torch.zeros(()), rows, N, B, B, shards=SHARDS), *taken, own_mask)
    of_new = fresh.take(new_key, 2, 0).transpose(1, 2)
    keys = fresh.scatter(of_new, key.transpose(1, 2)).transpose(1, 2)
    expected = fresh.take(F.scaled_dot_product_attention(query, keys, value, given_mask), 2, 0)
    torch.testing.assert_close(found, dealt(expected, layout, CHOSEN.count))
    assert not torch.allclose(expected, fresh.take(F.scaled_dot_product_attention(query, key, value, mask), 2, 0))


def test_a_mask_with_a_row_for_each_query_is_refused() -> None:
    state, given = AttentionState(AttentionSite("attn", "text-image")), [draw(B, H, N + T, D)] * 3
    mask = torch.ones(B, 1, N + T, N + T, dtype=torch.bool)
    coming = Coming(BranchCache(Hold()), torch.zeros(()), None, N, B, B, shards=SHARDS)
    with pytest.raises(AttentionError, match=r"attn: expected a mask over keys alone where tokens are divided over d"):
        attend(state, coming, *given, mask)
