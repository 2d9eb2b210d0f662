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


def test_a_function_writes_its_result_where_the_last_one_was() -> None:
    buffers, one = StaticBuffers(), torch.arange(3)
    first = buffers.write("sum", (3,), torch.add, one, one)
    assert first.tolist() == [0, 2, 4]
    again = buffers.write("sum", (3,), torch.add, one, 1)
    assert again is first
    assert first.tolist() == [1, 2, 3]
    joined = buffers.write("sum", (6,), torch.cat, [one, one])
    assert joined is not first
    assert joined.tolist() == [0, 1, 2, 0, 1, 2]
    assert buffers.write("sum", (3,), torch.add, one.float(), 1).dtype == torch.float32


def test_constants_are_made_once() -> None:
    buffers = StaticBuffers()
    numbers = buffers.numbers(2, 5, 3, torch.device("cpu"))
    assert numbers.tolist() == [[2], [7], [12]]
    assert buffers.numbers(2, 5, 3, torch.device("cpu")) is numbers
    assert buffers.numbers(2, 5, 2, torch.device("cpu")).tolist() == [[2], [7]]
    buffers.tidy()
    buffers.tidy()
    assert buffers.constant("other", lambda: numbers) is numbers
    assert buffers.numbers(2, 5, 3, torch.device("cpu")) is not numbers
