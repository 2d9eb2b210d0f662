"""Compiled blocks of models whose attention splits heads with `Tensor.unflatten`: FLUX, Wan, Qwen-Image."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

import tokenprune
from tokenprune import CATPolicy, Plan
from tokenprune.plans.presets import best_plan
from tokenprune.registry import find_adapter

CASES = {case.name: case for case in tiny.ALL}
STEPS = 6


@pytest.mark.parametrize("name", ["flux", "flux2", "wan", "qwenimage"])
@pytest.mark.parametrize("plan", [Plan(CATPolicy(0.4, 3, num_clusters=4)), best_plan(0.5)], ids=["CAT", "skipping"])
def test_compiled_blocks_draw_what_eager_ones_do(name: str, plan: Plan) -> None:
    """And later generations compile nothing again. Blocks whose input has other strides have a graph of their own."""
    model, inputs = CASES[name].make(), CASES[name].inputs()
    found, graphs = find_adapter(model)(model), []

    def generate() -> list[Tensor]:
        time = inputs[found.time]
        shares = torch.linspace(1, 0.1, STEPS).tolist()
        with torch.no_grad():
            calls = ({**inputs, found.time: (time * share).to(time.dtype)} for share in shares)
            return [model(**call, return_dict=False)[0] for call in calls]

    def counted(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    with tokenprune.apply(model, plan, guidance="none"):
        eager = generate()
    blocks = [model.get_submodule(site.path) for site in found.block_sites]
    torch.compiler.reset()
    try:
        for block in blocks:
            block.compile(backend=counted, fullgraph=True)
        with tokenprune.apply(model, plan, guidance="none"):
            for own, expected in zip(generate(), eager, strict=True):
                torch.testing.assert_close(own, expected)
            first = len(graphs)
            assert first > 0
            generate()
            assert len(graphs) == first
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch.compiler.reset()
