from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import Selection, SelectionError


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    count = draw(st.integers(1, tokens))
    rows = [draw(st.permutations(range(tokens)))[:count] for _ in range(batch)]
    return Selection.from_index(torch.tensor(rows), tokens)


def tokens_of(selection: Selection, *channels: int) -> Tensor:
    shape = (selection.batch_size, selection.num_tokens, *channels)
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


@given(selections())
def test_scatter_undoes_gather(selection: Selection) -> None:
    tokens = tokens_of(selection, 3)
    assert torch.equal(selection.scatter(selection.gather(tokens), tokens), tokens)


@given(selections(), st.sampled_from([(), (2,), (2, 3)]))
def test_gather_takes_the_rows_that_the_index_names(selection: Selection, channels: tuple[int, ...]) -> None:
    tokens = tokens_of(selection, *channels)
    expected = torch.stack([image[row] for image, row in zip(tokens, selection.index, strict=True)])
    assert torch.equal(selection.gather(tokens), expected)


@given(selections())
def test_scatter_changes_the_selected_rows_alone(selection: Selection) -> None:
    base = tokens_of(selection, 2)
    before = base.clone()
    fresh = -tokens_of(selection, 2)[:, : selection.count]
    result = selection.scatter(fresh, base)
    for image in range(selection.batch_size):
        for token in range(selection.num_tokens):
            places = (selection.index[image] == token).nonzero().flatten().tolist()
            expected = fresh[image, places[0]] if places else before[image, token]
            assert torch.equal(result[image, token], expected)
    assert torch.equal(base, before)


@given(selections())
def test_mask_marks_the_index(selection: Selection) -> None:
    mask = selection.mask()
    assert mask.dtype == torch.bool
    assert mask.shape == (selection.batch_size, selection.num_tokens)
    assert [row.nonzero().flatten().tolist() for row in mask] == selection.index.tolist()


@given(selections(), st.integers(0, 4), st.integers(0, 4))
def test_rows_are_places_in_flattened_sequences(selection: Selection, before: int, after: int) -> None:
    length = before + selection.num_tokens + after
    expected = [image * length + before + token for image, row in enumerate(selection.index.tolist()) for token in row]
    assert selection.rows(length, before).tolist() == expected


def test_rows_at_hand_are_given_for_their_own_sequences_alone() -> None:
    kept = torch.tensor([7, 8])
    selection = Selection(torch.tensor([[0, 2]]), 3, flat=kept)
    assert selection.rows(3) is kept
    assert selection.rows(3, 1).tolist() == [1, 3]
    assert selection.rows(4).tolist() == [0, 2]


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.data())
def test_top_prefers_high_scores_then_the_first_in_the_grid(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    assert Selection.top(torch.tensor([scores]), count).index.tolist() == [sorted(order[:count])]


def test_top_counts_nan_as_the_highest_score() -> None:
    scores = torch.tensor([[1.0, float("nan"), float("inf"), 0.0], [float("nan")] * 4])
    assert Selection.top(scores, 2).index.tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize("shape", [(4,), (1, 4, 2)])
def test_top_refuses_scores_of_another_rank(shape: tuple[int, ...]) -> None:
    with pytest.raises(SelectionError, match=r"scores: expected shape \[B, N\], got \[" + str(shape[0])):
        Selection.top(torch.zeros(shape), 1)


@pytest.mark.parametrize("count", [-1, 0, 5])
def test_top_refuses_a_count_out_of_range(count: int) -> None:
    with pytest.raises(SelectionError, match=rf"count: expected 1 to 4 \(the number of tokens\), got {count}"):
        Selection.top(torch.zeros(1, 4), count)


@given(st.integers(1, 3), st.integers(1, 20), st.data())
def test_from_mask_gives_the_places_that_are_true(images: int, tokens: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, tokens))
    rows = [data.draw(st.permutations(range(tokens)))[:count] for _ in range(images)]
    mask = torch.tensor([[token in row for token in range(tokens)] for row in rows])
    selection = Selection.from_mask(mask, count)
    assert selection.index.tolist() == [sorted(row) for row in rows]
    assert selection.index.dtype == torch.int64
    assert selection.num_tokens == tokens


def test_from_index_sorts() -> None:
    given_index = torch.tensor([[3, 0, 2], [1, 2, 0]])
    assert Selection.from_index(given_index, 4).index.tolist() == [[0, 2, 3], [0, 1, 2]]
    assert given_index.tolist() == [[3, 0, 2], [1, 2, 0]]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0, 1]), r"expected shape \[B, n\] with 1 <= n <= 4, got \[2\]"),
        (torch.zeros(1, 5, dtype=torch.int64), r"expected shape \[B, n\] with 1 <= n <= 4, got \[1, 5\]"),
        (torch.zeros(1, 0, dtype=torch.int64), r"expected shape \[B, n\] with 1 <= n <= 4, got \[1, 0\]"),
        (torch.tensor([[0, 1]], dtype=torch.int32), "expected dtype torch.int64, got torch.int32"),
        (torch.tensor([[0.0, 1.0]]), "expected dtype torch.int64, got torch.float32"),
        (torch.tensor([[True, False]]), "expected dtype torch.int64, got torch.bool"),
        (torch.tensor([[0, 1], [2, 4]]), r"expected values in 0\.\.3, got 0\.\.4"),
        (torch.tensor([[-1, 1]]), r"expected values in 0\.\.3, got -1\.\.1"),
        (torch.tensor([[0, 1], [2, 2]]), "expected unique tokens per image, got duplicates"),
    ],
)
def test_from_index_refuses(index: Tensor, message: str) -> None:
    with pytest.raises(SelectionError, match="index: " + message):
        Selection.from_index(index, 4)


def test_gather_and_scatter_refuse_other_shapes() -> None:
    selection = Selection.from_index(torch.tensor([[0, 2]]), 3)
    with pytest.raises(SelectionError, match=r"tokens: expected shape \[1, 3, \.\.\.\], got \[1, 4, 2\]"):
        selection.gather(torch.zeros(1, 4, 2))
    with pytest.raises(SelectionError, match=r"tokens: expected shape \[1, 3, \.\.\.\], got \[2, 3, 2\]"):
        selection.gather(torch.zeros(2, 3, 2))
    with pytest.raises(SelectionError, match=r"tokens: expected shape \[1, 2, \.\.\.\], got \[1, 3, 2\]"):
        selection.scatter(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))
    with pytest.raises(SelectionError, match=r"tokens: expected shape \[1, 3, \.\.\.\], got \[1, 2, 2\]"):
        selection.scatter(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
