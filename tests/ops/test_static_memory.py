"""Tensors that keep their addresses."""

from __future__ import annotations

import torch

from tokenprune.ops.static_memory import StaticBuffers


def test_a_name_and_a_shape_have_one_address() -> None:
    buffers = StaticBuffers()
    first, other = buffers.put("rows", torch.arange(4)), buffers.put("rows", torch.arange(3))
    again = buffers.put("rows", torch.arange(4) + 7)
    assert again.data_ptr() == first.data_ptr() != other.data_ptr()
    assert again.tolist() == [7, 8, 9, 10]
    assert other.tolist() == [0, 1, 2]
    assert buffers.part("text").put("rows", torch.arange(4)).data_ptr() != first.data_ptr()
    assert buffers.part("text") is buffers.part("text")


def test_what_is_put_is_a_copy() -> None:
    buffers, given = StaticBuffers(), torch.arange(4)
    kept = buffers.put("rows", given)
    given.zero_()
    assert kept.tolist() == [0, 1, 2, 3]


def test_what_nobody_needed_is_let_go_of() -> None:
    buffers = StaticBuffers()
    kept = [place.put("rows", torch.arange(4)) for place in (buffers, buffers.part("text"))]
    buffers.tidy()
    assert buffers.put("rows", torch.arange(4)) is kept[0]
    buffers.tidy()
    assert buffers.put("rows", torch.arange(4)) is kept[0]
    assert buffers.part("text").put("rows", torch.arange(4)) is not kept[1]


def test_what_inference_mode_made_is_replaced_outside_of_it() -> None:
    buffers = StaticBuffers()
    with torch.inference_mode():
        buffers.put("rows", torch.arange(4))
    kept = buffers.put("rows", torch.arange(4) + 1)
    assert not kept.is_inference()
    assert kept.tolist() == [1, 2, 3, 4]
