"""Compiled blocks: two graphs for each kind of block, at any step, seed or generation; and compiled models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from diffusers import PixArtSigmaPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch._dynamo.utils import counters

import tokenprune
from tokenprune import AttentionRankPolicy, CATPolicy, HeldText, Plan, SelectionPolicy
from tokenprune.plans.presets import best_plan, token_plan

KINDS_OF_BLOCK = 3  # with dual attention, without, and the last one, which drops the text
# Torch 2.6 tells blocks apart by their attention processors, and compiles each block anew, plain ones, too.
EACH_BLOCK = torch.__version__ < (2, 7)
POLICY = CATPolicy(alpha=0.3, warmup_steps=3, num_clusters=5)
HOLDING = Plan(POLICY, HeldText(POLICY.schedule(), every=2))  # steps with and without text have a graph each
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


def draw_pixart(pipe: PixArtSigmaPipeline, seed: int) -> Tensor:
    arguments = {"max_sequence_length": 8, "height": 32, "width": 32, "use_resolution_binning": False}
    generator = torch.Generator().manual_seed(seed)
    return pipe("a red circle", num_inference_steps=6, generator=generator, output_type="latent", **arguments).images


@pytest.mark.parametrize(
    ("configuration", "graphs"),
    [(POLICY, 2), (token_plan(0.5), 2), (ASKING, 2), (best_plan(0.5), 1), (HOLDING, 3)],
    ids=["cat", "pruned plan", "attention", "skipping plan", "held text"],
)
def test_compiled_blocks_have_a_graph_for_full_steps_and_one_for_pruned_ones(
    sd3_pipeline: StableDiffusion3Pipeline,
    configuration: SelectionPolicy | Plan,
    graphs: int,
) -> None:
    blocks = sd3_pipeline.transformer.transformer_blocks
    with tokenprune.apply(sd3_pipeline, configuration):
        eager = draw(sd3_pipeline, 0)
    with compiled(blocks, fullgraph=True) as counter, tokenprune.apply(sd3_pipeline, configuration):
        torch.testing.assert_close(draw(sd3_pipeline, 0), eager)
        assert counter.blocks() == graphs * KINDS_OF_BLOCK
        for seed in (1, 2):
            draw(sd3_pipeline, seed)
        assert counter.blocks() == graphs * KINDS_OF_BLOCK


def test_compiled_blocks_with_text_keys_that_are_kept(pixart_pipeline: PixArtSigmaPipeline) -> None:
    """One kind of block, whose first gets hidden states with other strides at full steps."""
    with tokenprune.apply(pixart_pipeline, POLICY):
        eager = draw_pixart(pixart_pipeline, 0)
    blocks = pixart_pipeline.transformer.transformer_blocks
    graphs = 2 * len(blocks) if EACH_BLOCK else 2 + 1
    with compiled(blocks, fullgraph=True) as counter, tokenprune.apply(pixart_pipeline, POLICY):
        torch.testing.assert_close(draw_pixart(pixart_pipeline, 0), eager)
        assert counter.blocks() == graphs
        draw_pixart(pixart_pipeline, 1)
        assert counter.blocks() == graphs


def test_blocks_that_drew_compiled_before(sd3_pipeline: StableDiffusion3Pipeline) -> None:
    """Torch does not look at the hooks of parts of a block again once it has compiled the block."""
    with tokenprune.apply(sd3_pipeline, POLICY):
        eager = draw(sd3_pipeline, 1)
    with compiled(sd3_pipeline.transformer.transformer_blocks, fullgraph=True) as counter:
        plain = draw(sd3_pipeline, 1)
        with tokenprune.apply(sd3_pipeline, POLICY):
            draw(sd3_pipeline, 0)
            torch.testing.assert_close(draw(sd3_pipeline, 1), eager)
        assert counter.blocks() == (1 + 2) * KINDS_OF_BLOCK
        torch.testing.assert_close(draw(sd3_pipeline, 1), plain)


def test_a_compiled_model_breaks_only_at_the_engine(sd3_pipeline: StableDiffusion3Pipeline) -> None:
    model = sd3_pipeline.transformer
    with tokenprune.apply(sd3_pipeline, POLICY):
        eager = draw(sd3_pipeline, 1)
    with compiled([model]) as counter:
        plain = draw(sd3_pipeline, 1)
        with tokenprune.apply(sd3_pipeline, POLICY):
            draw(sd3_pipeline, 0)
            torch.testing.assert_close(draw(sd3_pipeline, 1), eager)
            graphs = len(counter.sizes)
            draw(sd3_pipeline, 2)
            assert len(counter.sizes) == graphs
            assert all("function after_exit" in reason for reason in counters["graph_break"])
            assert counters["graph_break"]
        torch.testing.assert_close(draw(sd3_pipeline, 1), plain)


def test_a_model_in_the_wrapper_of_torch(sd3_pipeline: StableDiffusion3Pipeline) -> None:
    model, counter = sd3_pipeline.transformer, GraphCounter()
    with tokenprune.apply(sd3_pipeline, POLICY):
        eager = draw(sd3_pipeline, 1)
    sd3_pipeline.transformer = torch.compile(model, backend=counter)
    try:
        with tokenprune.apply(sd3_pipeline, POLICY):
            torch.testing.assert_close(draw(sd3_pipeline, 1), eager)
        assert counter.blocks()
    finally:
        sd3_pipeline.transformer = model
        torch.compiler.reset()


@contextmanager
def compiled(modules: Iterable[nn.Module], **options: bool) -> Iterator[GraphCounter]:
    modules, counter = list(modules), GraphCounter()
    torch.compiler.reset()
    counters.clear()  # of what other tests compiled
    try:
        for module in modules:
            module.compile(backend=counter, **options)
        with torch._dynamo.config.patch(cache_size_limit=3 * KINDS_OF_BLOCK):  # torch compiles a piece of code 8 times
            yield counter
    finally:
        for module in modules:
            module._compiled_call_impl = None
        torch.compiler.reset()
