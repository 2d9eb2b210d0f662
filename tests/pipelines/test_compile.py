"""Compiled blocks: two graphs for each kind of block, whatever the step, the seed or the generation."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

import tokenprune
from tokenprune import AttentionRankPolicy, CATPolicy, Plan, SelectionPolicy
from tokenprune.presets import best_plan

KINDS_OF_BLOCK = 3  # with dual attention, without, and the last one, which drops the text
POLICY = CATPolicy(alpha=0.3, warmup_steps=3, num_clusters=5)
ASKING = AttentionRankPolicy(alpha=0.3, warmup_steps=3)


class GraphCounter:
    """A back-end that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> torch.fx.GraphModule:
        self.sizes.append(len(graph.graph.nodes))
        return graph

    def blocks(self) -> int:
        return sum(size > 20 for size in self.sizes)


def draw(pipe: StableDiffusion3Pipeline, seed: int) -> Tensor:
    arguments = {"max_sequence_length": 1, "height": 32, "width": 32, "output_type": "latent"}
    generator = torch.Generator().manual_seed(seed)
    return pipe("a red circle", num_inference_steps=6, generator=generator, **arguments).images


@pytest.mark.parametrize("way", [POLICY, best_plan(0.5), ASKING], ids=["cat", "plan", "attention"])
def test_compiled_blocks_have_two_graphs_each(
    sd3_pipeline: StableDiffusion3Pipeline, way: SelectionPolicy | Plan
) -> None:
    blocks = sd3_pipeline.transformer.transformer_blocks
    with tokenprune.apply(sd3_pipeline, way):
        eager = draw(sd3_pipeline, 0)
    counter = GraphCounter()
    torch.compiler.reset()
    try:
        for block in blocks:
            block.compile(fullgraph=True, backend=counter)
        with tokenprune.apply(sd3_pipeline, way):
            torch.testing.assert_close(draw(sd3_pipeline, 0), eager)
            assert counter.blocks() == 2 * KINDS_OF_BLOCK
            for seed in (1, 2):
                draw(sd3_pipeline, seed)
            assert counter.blocks() == 2 * KINDS_OF_BLOCK
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch.compiler.reset()
