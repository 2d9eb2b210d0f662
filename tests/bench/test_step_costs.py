"""Operators of a call, and what steps cost beside the least that they could."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokenprune.bench.measuring.kernels import counting_kernels
from tokenprune.bench.studies import step_costs
from tokenprune.bench.studies.step_costs import Drawn, cells, costs, rectangle
from tokenprune.bench.subjects.random_weights import SHAPES

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 3,
    "sample_size": 16,
    "cross_attention_dim": 16,
}


class Block(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.view(-1).view(x.shape) + 1).transpose(0, 1).transpose(0, 1) * 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.exp()[:2]


def test_operators_that_make_numbers_are_counted() -> None:
    """Not views, and not those of other calls; hooks of the model and of its blocks are counted where they run."""
    model = Model()
    model.blocks[1].register_forward_hook(lambda *given: given[-1].neg())
    model.register_forward_pre_hook(lambda _, args: (args[0].sin(),))
    with counting_kernels(model, ["blocks.0", "blocks.1"]) as calls:
        torch.ones(3).cos()
        model(torch.ones(3, 4))
        model(torch.ones(3, 4))
    model(torch.ones(3, 4))
    assert [(call.in_blocks, call.outside, call.blocks, call.per_block) for call in calls] == [(5, 2, 2, 2.5)] * 2
    assert len(model.blocks[0]._forward_hooks) == len(model.blocks[0]._forward_pre_hooks) == 0


@pytest.mark.parametrize(
    ("tokens", "most", "multiple", "expected"),
    [
        (76, 32, 1, (4, 19)),
        (76, 40, 2, (2, 38)),
        (76, 32, 2, (6, 12)),
        (75, 32, 2, (6, 12)),
        (256, 32, 2, (16, 16)),
        (37, 32, 1, (6, 6)),
        (37, 40, 1, (1, 37)),
        (1, 5, 1, (1, 1)),
    ],
)
def test_the_squarest_rectangle(tokens: int, most: int, multiple: int, expected: tuple[int, int]) -> None:
    assert rectangle(tokens, most, multiple) == expected


def test_each_kind_of_step_has_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["pixart-sigma"]
    monkeypatch.setitem(SHAPES, "pixart-sigma", replace(shape, config={**shape.config, **SMALL}))
    found = list(costs(Drawn("random:pixart-sigma", "float32", 128), turns=1))
    kinds = {(cost.configuration, cost.kind) for cost in found}
    assert kinds == {
        ("plain model", "full"),
        ("CAT", "full"),
        ("CAT", "pruned"),
        ("tokenprune.plan", "full"),
        ("tokenprune.plan", "skipped"),
        ("tokenprune.plan, skips=False", "full"),
        ("tokenprune.plan, skips=False", "pruned"),
    }
    plain = found[0]
    by_kind: dict[Any, Any] = {(cost.configuration, cost.kind): cost for cost in found}
    assert plain.tokens == 64
    assert by_kind["CAT", "pruned"].tokens == int(0.3 * 64)
    assert all(cost.outside > plain.outside for cost in found[1:] if cost.kind != "skipped")
    skipped = by_kind["tokenprune.plan", "skipped"]
    assert (skipped.per_block, skipped.least, skipped.overhead) == (0, None, None)
    assert 0 < skipped.outside < by_kind["tokenprune.plan", "full"].outside
    assert by_kind["tokenprune.plan", "full"].per_block == plain.per_block  # it keeps no keys
    assert cells(plain)[-1] == "+0%"


MORE = {
    ("CAT", "full"): (2.5, 5),
    ("CAT", "pruned"): (2.5, 55),
    ("tokenprune.plan", "full"): (0.5, 24),
    ("tokenprune.plan, skips=False", "full"): (24, 30),
    ("tokenprune.plan, skips=False", "pruned"): (34, 65),
}
"""At most so many operators more than the plain model: in a block, and outside of all blocks."""


def test_steps_cost_what_they_compute() -> None:
    """Counts are the same on any machine; each operator is a kernel on a GPU."""
    given, found = Drawn("shapes-sd3", "float32", None), {}
    with counting_kernels(given.pipe.transformer, given.blocks) as calls:
        given.draw(given.grid, 2)
    plain = calls[-1]
    for name, plan in step_costs.CONFIGURATIONS.items():
        for (kind, _), (per_block, outside) in step_costs.operators(given, plan).items():
            found[name, kind] = per_block - plain.per_block, outside - plain.outside
    assert found.pop(("tokenprune.plan", "skipped"))[1] + plain.outside <= 6
    assert found.keys() == MORE.keys()
    for step, (per_block, outside) in found.items():
        assert 0 <= per_block <= MORE[step][0], step
        assert 0 < outside <= MORE[step][1], step


def test_the_size_of_a_token_is_found_by_drawing() -> None:
    """FLUX's configuration has no size, and its pipeline packs latents."""
    assert Drawn("shapes-flux", "float32", None).grid == (16, 16)
    larger = Drawn("shapes-flux", "float32", 96)
    assert (larger.grid, larger.of_tokens(76)) == ((24, 24), (2, 38))


def test_unknown_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="expected random: and one of"):
        step_costs.main("random:nothing")
