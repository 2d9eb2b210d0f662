"""Blocks that stand in for themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tokenprune.engine.block_outputs import BlockOutputs


class Several(nn.Module):
    """Gives a tuple, a dict or a lone tensor, in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> object:
        self.calls += 1
        return [(x, None), {"x": x[:1], "n": 3}, x.double()][(self.calls - 1) % 3]


def test_outputs_have_the_same_forms_in_the_same_order() -> None:
    block, outputs = Several(), BlockOutputs()
    outputs.watch([block])
    for _ in range(3):
        block(torch.ones(2, 3))
    with outputs.stand_in():
        first, second, third = (block(torch.ones(9)) for _ in range(3))
    assert block.calls == 3
    assert (first[0].shape, first[1]) == ((2, 3), None)
    assert (second["x"].shape, second["n"]) == ((1, 3), 3)
    assert (third.shape, third.dtype) == ((2, 3), torch.float64)
    assert not any(t.any() for t in (first[0], second["x"], third))
    outputs.leave()
    assert block(torch.ones(1))[0].item() == 1
    assert not block._forward_hooks
    assert "forward" not in block.__dict__


def test_a_forward_of_somebody_else_is_put_back_after_an_error() -> None:
    block, outputs = nn.Linear(2, 2), BlockOutputs()
    block.forward = theirs = lambda x: x + 1  # type: ignore[method-assign]
    outputs.watch([block])
    block(torch.ones(2))
    with pytest.raises(RuntimeError, match="stopped"):
        fail_within(outputs, block)
    assert block.forward is theirs


def fail_within(outputs: BlockOutputs, block: nn.Module) -> None:
    with outputs.stand_in():
        assert not block(torch.ones(2)).any()
        raise RuntimeError("stopped")
