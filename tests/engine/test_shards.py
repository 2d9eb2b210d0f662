"""Where tokens lie that are divided over ranks; what ranks tell each other is tested in tests/integration/parallel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import Selection, TokenArgument
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
