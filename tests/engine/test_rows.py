"""Rows of longer sequences, of other dimensions and in masks: what the maps of less plain models rest on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokenprune import AttentionError, AttentionSite, ExitSite, Hold, Selection, TokenArgument
from tokenprune.engine.attention_hooks import serve
from tokenprune.engine.attention_state import AttentionState, Coming, prepare
from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.exit_hooks import EXPANDED, Exit, ExpandState, after_expanded
from tokenprune.engine.rows import Rows, gather, gather_first

B, N, T, H, D = 2, 6, 3, 2, 4
CHOSEN = torch.tensor([[0, 2, 5], [1, 2, 3]])


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@given(data=st.data())
def test_within_keeps_the_order_of_everything(data: st.DataObject) -> None:
    images, tokens, text = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8)), data.draw(st.integers(0, 4))
    count, first = data.draw(st.integers(1, tokens)), data.draw(st.integers(0, text))
    index = torch.rand(images, tokens).argsort(1)[:, :count].sort(1).values
    expected = [
        [i for i in range(tokens + text) if not first <= i < first + tokens or i - first in row]
        for row in index.tolist()
    ]
    for start in (first, torch.full((images,), first)):
        found = Selection(index, tokens).within(tokens + text, start)
        assert found.num_tokens == tokens + text
        assert found.index.tolist() == expected


def test_within_when_images_begin_at_different_places() -> None:
    found = Selection(CHOSEN, N).within(N + 2, torch.tensor([2, 1]))
    assert found.index.tolist() == [[0, 1, 2, 4, 7], [0, 2, 3, 4, 7]]


@pytest.mark.parametrize(
    ("dim", "batch", "shape"),
    [(1, 0, (B, N, D)), (2, 0, (B, D, N)), (0, 1, (N, B, D)), (2, 1, (D, B, N, 3)), (3, 0, (B, 3, D, N))],
)
def test_take_in_any_dimension(dim: int, batch: int, shape: tuple[int, ...]) -> None:
    tensor = draw(*shape)
    found = Selection(CHOSEN, N).take(tensor, dim, batch)
    for image, row in enumerate(CHOSEN):
        own = tensor.select(batch, image)
        expected = own.index_select(dim - (batch < dim), row)
        assert torch.equal(found.select(batch, image), expected)


@pytest.mark.parametrize(("dim", "batch"), [(1, 0), (0, 1), (2, 0)])
def test_take_of_what_is_the_same_for_all_images(dim: int, batch: int) -> None:
    one = draw(*{(1, 0): (1, N, D), (0, 1): (N, 1, D), (2, 0): (1, D, N)}[dim, batch])
    found = Selection(CHOSEN, N).take(one, dim, batch)
    every = one.expand(*(B if place == batch else -1 for place in range(3)))
    assert torch.equal(found, Selection(CHOSEN, N).take(every, dim, batch))


def test_take_without_a_dimension_for_images() -> None:
    table = draw(N, D)
    assert torch.equal(Selection(CHOSEN[:1].repeat(2, 1), N).take(table, 0, None), table[CHOSEN[0]])


def test_take_of_images_and_tokens_in_one_dimension() -> None:
    folded = draw(B * N, D)
    found = Selection(CHOSEN, N).take(folded, 0, 0)
    assert torch.equal(found, folded.view(B, N, D).gather(1, CHOSEN[..., None].expand(-1, -1, D)).flatten(0, 1))


def test_gather_takes_what_has_a_row_for_each_token() -> None:
    rows = Rows(Selection(CHOSEN, N), ("image", "text-image"), T)
    whole, short, table = draw(B, N, D), draw(B, 3, D), draw(N, D)
    joint = draw(B, T + N, D)
    assert gather(rows, TokenArgument("x"), None) is None
    assert gather(rows, TokenArgument("x"), 7) == 7
    assert gather(rows, TokenArgument("x"), short) is short
    assert gather(rows, TokenArgument("x", ndim=3), draw(B, N)).shape == (B, N)
    assert gather(rows, TokenArgument("x"), draw(B, N)).shape == (B, 3)
    first, second = gather(rows, TokenArgument("x"), (whole, [whole, short]))
    assert first.shape == second[0].shape == (B, 3, D)
    assert gather(rows, TokenArgument("x"), {2: whole})[2].shape == (B, 3, D)
    kept, taken = gather(rows, TokenArgument("x", dim=0, batch=None, item=1), (table, table))
    assert kept is table
    assert torch.equal(taken, table[CHOSEN[0]])
    found = gather(rows, TokenArgument("x", "text-image"), joint)
    assert torch.equal(found[:, :T], joint[:, :T])
    assert torch.equal(found[:, T:], Selection(CHOSEN, N).gather(joint[:, T:].contiguous()))


def test_the_first_way_that_fits_is_taken() -> None:
    """A sequence is gathered once, even where what is left is as long as the image is."""
    whole, ways = N + T, (TokenArgument("x", "text-image"), TokenArgument("x"))
    rows = Rows(Selection(CHOSEN, N), ("image", "text-image"), T)
    joint, image, neither = draw(B, whole, D), draw(B, N, D), draw(B, 4, D)
    assert rows.by_layout["text-image"].count == N
    found = gather_first(rows, ways, joint)
    assert found.shape == (B, N, D)
    assert torch.equal(found, gather(rows, ways[0], joint))
    assert torch.equal(gather_first(rows, ways, image), image[torch.arange(B)[:, None], CHOSEN])
    assert gather_first(rows, ways, neither) is neither
    assert gather_first(rows, ways, (neither, 3, None)) == (neither, 3, None)


def test_held_text_has_one_row() -> None:
    rows = Rows(Selection(CHOSEN, N), ("image", "text-image", "image-text"), T, with_text=False)
    text, joint = draw(B, T, D), draw(B, T + N, D)
    assert torch.equal(gather(rows, TokenArgument("x", "text"), text), text[:, :1])
    assert torch.equal(gather(rows, TokenArgument("x", "text", dim=-2), draw(T, D)), draw(T, D)[:1])
    assert gather(Rows(Selection(CHOSEN, N), (), T), TokenArgument("x", "text"), text) is text
    images = Selection(CHOSEN, N)
    before, behind = (gather(rows, TokenArgument("x", layout), joint) for layout in ("text-image", "image-text"))
    assert torch.equal(before, torch.cat([joint[:, :1], images.gather(joint[:, T:].contiguous())], dim=1))
    assert torch.equal(behind, torch.cat([images.gather(joint[:, :N].contiguous()), joint[:, N : N + 1]], dim=1))


def test_frames_share_a_selection() -> None:
    rows = Rows(Selection(CHOSEN, N), ("image",), frames=2)
    frames = draw(2 * B, N, D)
    assert torch.equal(gather(rows, TokenArgument("x"), frames)[1], frames[1, CHOSEN[0]])
    assert torch.equal(gather(rows, TokenArgument("x"), frames)[2], frames[2, CHOSEN[1]])


def attend(state: AttentionState, coming: Coming, *given: Tensor | None) -> Tensor:
    """The only attention call of a module in a call of the model: query, key, value and mask."""
    prepare([state], coming)
    mode = serve(state)
    assert mode is not None
    output = mode.service.attend(*given)
    mode.service.end(output, (None, None))
    return output


def pruned_attention(layout: Any, mask: Tensor | None, computed: Tensor | None, queries: int) -> Tensor:
    """Attention of a pruned call whose every key is known, with the mask as it comes, of `queries` queries."""
    length = N if layout == "image" else N + T
    key, value = draw(B, H, length, D), draw(B, H, length, D) + 1
    state, branch = AttentionState(AttentionSite("attn", layout)), BranchCache(Hold())
    attend(state, Coming(branch, torch.zeros(()), None, N, B, B), draw(B, H, length, D), key, value, mask)
    rows = Rows(Selection(CHOSEN, N), (), T)
    fresh = rows.sequence(layout, length)
    taken = [fresh.take(tensor, 2, 0) for tensor in (draw(B, H, length, D), key, value)]
    query = taken[0] if queries == fresh.count else taken[0][:, :, -queries:]
    return attend(state, Coming(branch, torch.zeros(()), rows, N, B, B), query, taken[1], taken[2], computed)


@pytest.mark.parametrize("layout", ["image", "image-text", "text-image"])
@pytest.mark.parametrize("kind", ["none", "keys", "queries", "computed keys", "computed", "float"])
def test_masks_fit_themselves(layout: Any, kind: str) -> None:
    text = 0 if layout == "image" else T
    length, own = N + text, Selection(CHOSEN, N).within(N + text, text if layout == "text-image" else 0)
    hidden = torch.ones(B, length, dtype=torch.bool)
    if text:
        hidden[1, 0 if layout == "text-image" else -1] = False
    square = (hidden[:, None, :] & hidden[:, :, None] | torch.eye(length, dtype=torch.bool))[:, None]
    if kind == "float":
        square = square * 1.5
    keys = hidden[:, None, None, :]
    rows = own.take(square, 2, 0)
    full, came = {
        "none": (None, None),
        "keys": (keys, keys),
        "queries": (square, square),
        "computed keys": (keys, own.take(keys, 3, 0)),
        "computed": (square, own.take(rows, 3, 0)),
        "float": (square, own.take(rows, 3, 0)),
    }[kind]
    if kind in ("computed", "float"):  # image tokens alike: the diagonal is no part of such masks
        square = (hidden[:, None, :] & hidden[:, :, None])[:, None] * (1.5 if kind == "float" else 1)
        square = square if kind == "float" else square.bool() | ~hidden[:, None, :, None]
        full, came = square, own.take(own.take(square, 2, 0), 3, 0)
    found = pruned_attention(layout, full, came, own.count)
    key, value = draw(B, H, length, D), draw(B, H, length, D) + 1
    expected = F.scaled_dot_product_attention(draw(B, H, length, D), key, value, full)
    torch.testing.assert_close(found, own.take(expected, 2, 0))


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(AttentionError, match=r"attn: expected a mask over all 9 keys, or over 6 of"):
        pruned_attention("image-text", None, torch.ones(B, 1, 1, 4, dtype=torch.bool), 6)


def test_queries_of_the_image_alone() -> None:
    """The text has keys and values, but asks nothing."""
    found = pruned_attention("text-image", None, torch.ones(B, 1, 1, 6, dtype=torch.bool), 3)
    key, value = draw(B, H, N + T, D), draw(B, H, N + T, D) + 1
    expected = F.scaled_dot_product_attention(draw(B, H, N + T, D)[:, :, T:], key, value)
    torch.testing.assert_close(found, Selection(CHOSEN, N).take(expected, 2, 0))


@pytest.mark.parametrize("layout", ["image", "image-text", "text-image"])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_the_exit_reads_and_writes_images(layout: Any, frames: int, turned: bool) -> None:
    site = ExitSite("exit", layout, *((0, 1) if turned else (1, 0)))
    text = 0 if layout == "image" else T
    whole = draw(B * frames, N + text, 3)
    laid = whole.transpose(0, 1) if turned else whole
    images = whole[:, text:] if layout == "text-image" else whole[:, :N]
    exit_ = Exit(site)
    exit_.tokens, exit_.frames = N, frames
    folded = exit_.read(laid)
    assert torch.equal(folded[:, :, -3:], images[frames - 1 :: frames])
    exit_.rows = Rows(Selection(CHOSEN, N), (), text, frames=frames)
    own = exit_.rows.sequence(layout, N + text)
    part = own.take(whole, 1, 0)
    part = part.transpose(0, 1) if turned else part
    assert torch.equal(exit_.read(part), Selection(CHOSEN, N).gather(folded.contiguous()))
    assert torch.equal(exit_.write(part, folded), laid)


def test_the_exit_where_the_model_cut_references_off() -> None:
    """Two before and one after: the prediction has rows for them, 0 at first, the output has none."""
    exit_ = Exit(ExitSite("exit", references=False))
    exit_.tokens, exit_.cut = N + 3, (2, 1)
    output = draw(B, N, 3)
    images = exit_.read(output)
    assert torch.equal(images, F.pad(output, (0, 0, 2, 1)))
    assert torch.equal(exit_.write(output, images), output)
    chosen = Selection(CHOSEN + 2, N + 3)
    exit_.rows = Rows(chosen, ())
    part = Selection(CHOSEN, N).gather(output)
    assert torch.equal(exit_.read(part), part)
    assert torch.equal(exit_.write(part, chosen.scatter(part, images)), output)


@pytest.mark.parametrize("starts", [None, torch.tensor([1, 2])])
def test_the_exit_over_all_rows_again(starts: Tensor | None) -> None:
    """The module before it had its rows expanded; rows of text keep what they are."""
    exit_ = Exit(ExitSite("exit", "text-image", expand="last", expand_layout="text-image"))
    exit_.tokens, exit_.starts = N, starts
    exit_.rows = Rows(Selection(CHOSEN, N), (), T, starts)
    whole, images = draw(B, N + T, 3), draw(B, N, 3) + 1
    firsts = [T] * B if starts is None else starts.tolist()
    own = torch.stack([sequence[first : first + N] for sequence, first in zip(whole, firsts, strict=True)])
    assert torch.equal(exit_.read(whole), Selection(CHOSEN, N).gather(own))
    written = exit_.write(whole, images)
    for image, (sequence, first) in enumerate(zip(written, firsts, strict=True)):
        assert torch.equal(sequence[first : first + N], images[image])
        others = [place for place in range(N + T) if not first <= place < first + N]
        assert torch.equal(sequence[others], whole[image, others])


def test_the_exit_without_a_dimension_for_images() -> None:
    """One image a call; its first two tokens were given, and have no rows in the output."""
    exit_ = Exit(ExitSite("exit", dim=0, batch=None, expand="last", references=False))
    exit_.tokens, exit_.cut = N + 2, (2, 0)
    output = draw(N, 3)
    images = exit_.read(output)
    assert torch.equal(images, F.pad(output, (0, 0, 2, 0))[None])
    assert torch.equal(exit_.write(output, images), output)
    chosen = Selection(CHOSEN[:1] + 2, N + 2)
    exit_.rows = Rows(chosen, ("image",))
    assert torch.equal(exit_.read(output), output[CHOSEN[:1]])
    assert torch.equal(exit_.write(output, images + 1), output + 1)
    module = nn.Identity()
    state = ExpandState(exit_.site)
    state.rows = exit_.rows
    setattr(module, EXPANDED, state)
    expanded = after_expanded(module, None, output[:3])
    assert torch.equal(expanded[CHOSEN[0] + 2], output[:3])
    assert expanded.count_nonzero() == output[:3].count_nonzero()


def test_the_exit_may_give_the_image_alone() -> None:
    """Where the text's keys come out of a cache of the model's, there are no rows of text, wherever images begin."""
    exit_ = Exit(ExitSite("exit", "text-image"))
    exit_.tokens, exit_.starts = N, torch.full((B,), T)
    output = draw(B, N, 3)
    assert torch.equal(exit_.read(output), output)
    exit_.rows = Rows(Selection(CHOSEN, N), (), T, exit_.starts)
    part = Selection(CHOSEN, N).gather(output)
    assert torch.equal(exit_.read(part), part)
    assert torch.equal(exit_.write(part, output + 1), output + 1)


def test_two_streams_of_the_image() -> None:
    """Each token has two keys, one in each half; both are kept and both are computed afresh."""
    rows = Rows(Selection(CHOSEN, N), ())
    assert rows.sequence("image-image", 2 * N).index.tolist() == [[0, 2, 5, 6, 8, 11], [1, 2, 3, 7, 8, 9]]
    state, branch = AttentionState(AttentionSite("attn", "image-image")), BranchCache(Hold())
    query, key, value = draw(B, H, 2 * N, D), draw(B, H, 2 * N, D) + 1, draw(B, H, 2 * N, D) + 2
    full = attend(state, Coming(branch, torch.zeros(()), None, N, B, B), query, key, value, None)
    fresh = rows.sequence("image-image", 2 * N)
    taken = [fresh.take(tensor, 2, 0) for tensor in (query, key + 1, value)]
    found = attend(state, Coming(branch, torch.zeros(()), rows, N, B, B), *taken, None)
    changed = fresh.scatter(fresh.take((key + 1).transpose(1, 2), 1, 0), key.transpose(1, 2)).transpose(1, 2)
    expected = F.scaled_dot_product_attention(query, changed, value)
    torch.testing.assert_close(found, fresh.take(expected, 2, 0))
    assert not torch.allclose(found, fresh.take(full, 2, 0))


def test_one_stream_is_not_two() -> None:
    state, branch = AttentionState(AttentionSite("attn", "image-image")), BranchCache(Hold())
    given = [draw(B, H, N, D)] * 3
    with pytest.raises(AttentionError, match=r"attn: expected 12 image keys, got 6 keys.*'image-image'"):
        attend(state, Coming(branch, torch.zeros(()), None, N, B, B), *given, None)


def test_a_call_that_ends_before_the_image_sees_none_of_it() -> None:
    """More keys than the image has tokens, but all of them text: only the second call's are kept."""
    state, branch = AttentionState(AttentionSite("attn", "text-image")), BranchCache(Hold())
    long = N + 1
    coming = Coming(branch, torch.zeros(()), None, N, B, B, torch.full((B,), long), long)
    prepare([state], coming)
    mode = serve(state)
    assert mode is not None
    for length, queries in ((long, long), (long + N, N)):
        mode.service.attend(*(draw(B, H, size, D) for size in (queries, length, length)))
    mode.service.end(None, (None, None))
    assert [call.number for call in branch.seen_calls("attn").calls] == [None, 0]


def test_sequences_of_a_part_of_the_batch() -> None:
    rows = Rows(Selection(CHOSEN, N), (), T)
    assert rows.sequence("image", N, (1, 1)).index.tolist() == CHOSEN[1:].tolist()
    assert rows.sequence("text-image", N + 1, (1, 2)).index.tolist() == [[0, 2, 3, 4], [0, 1, 3, 6]]
