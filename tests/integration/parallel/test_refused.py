"""Ways to divide a model over devices that cannot be pruned: refused by name, and the model is left as it was."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import models
import programs
import pytest
import tiny
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from diffusers.hooks import HookRegistry
from diffusers.hooks.context_parallel import ContextParallelSplitHook
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from ranks import Ranks
from torch import Tensor, nn

import tokenprune
from tokenprune import Arguments, CATPolicy, HookConflictError, UnsupportedCallError
from tokenprune.engine import held_text
from tokenprune.engine.call_arguments import CallArguments
from tokenprune.engine.parallelism import refuse_unequal_parts
from tokenprune.engine.shards import ALONE, Shards
from tokenprune.registry import find_adapter

TOKENS, JOIN = ContextParallelInput(split_dim=1, expected_dims=3), ContextParallelOutput(gather_dim=1, expected_dims=3)
TWICE = {**FluxTransformer2DModel._cp_plan, "norm_out": JOIN}
INSIDE = {**WanTransformer3DModel._cp_plan, "blocks.0.attn1": {"hidden_states": TOKENS}}
EARLY = {"": {"hidden_states": ContextParallelInput(split_dim=4, expected_dims=5)}, "proj_out": JOIN}
OF_BLOCKS = {"blocks.0": {"hidden_states": TOKENS}, "proj_out": JOIN}
OF_JOINT_BLOCKS = {"transformer_blocks.0": {"hidden_states": TOKENS}, "proj_out": JOIN}
ULYSSES = {"ulysses_degree": 2}
REFUSED: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any], str]] = {
    "ring": ("flux", None, {"ring_degree": 2}, r"ring attention \(ring_degree=2\) .* logarithms .*ulysses_degree=2\)"),
    "anything": ("flux", None, {**ULYSSES, "ulysses_anything": True}, "ulysses_anything .* parts of different lengths"),
    "joined twice": ("flux", TWICE, ULYSSES, "joins the tokens at norm_out, proj_out; expected at proj_out alone"),
    "joined nowhere": (
        "flux",
        {"": {"img_ids": TOKENS}},
        ULYSSES,
        "joins the tokens at no module; expected at proj_out",
    ),
    "within a block": ("wan", INSIDE, ULYSSES, r"divides the tokens at blocks\.0\.attn1; expected before the blocks"),
    "as latents": ("wan", EARLY, ULYSSES, "divides 'hidden_states' before the model runs; expected a module map that"),
    "ltx2": (
        "ltx2",
        None,
        ULYSSES,
        "divides 'hidden_states' before the model runs; expected a module map that names it",
    ),
    "text among them": ("minimax-h3", OF_JOINT_BLOCKS, ULYSSES, "rows of hidden_states, .* belong to image and text"),
    "minimax": (
        "minimax-h3",
        None,
        ULYSSES,
        "joins the tokens at proj_out, audio_proj_out; expected at proj_out alone",
    ),
    "counted": ("skyreels-v2", OF_BLOCKS, ULYSSES, "reckons with the number of all tokens between its blocks and its"),
    "other processors": ("sd3", OF_JOINT_BLOCKS, ULYSSES, "JointAttnProcessor2_0 to the tokens of one device alone"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pruned_is_refused(case: str, ranks: Ranks) -> None:
    """At `apply`, and where parallelism is enabled later at the next call."""
    name, plan, degrees, reason = REFUSED[case]
    kind = next(model.model for model in tiny.ALL if model.name == name)
    for early, left, late, behind in ranks(2, programs.refused, name, plan, degrees):
        assert left == behind == []
        for said in (early, late):
            assert said.startswith(
                f"HookConflictError: {kind}: is divided over several devices (enable_parallelism) in"
            )
            assert re.search(reason, said), said
            served = (
                "; or remove() the handle. A plan of full and skipped steps alone, as tokenprune.plan gives, is served"
            )
            assert said.endswith(served if case not in ("joined nowhere",) else "; or remove() the handle")


def test_a_model_without_adapter_is_refused() -> None:
    model = models.DiT()
    HookRegistry.check_if_exists_or_initialize(model).register_hook(ContextParallelSplitHook({}, None), "theirs")
    before = set(model.__dict__)
    with pytest.raises(HookConflictError, match=r"DiT: carries a hook that gives each device a part of the sequence"):
        tokenprune.apply(model, CATPolicy())
    assert set(model.__dict__) == before


class Model(nn.Module):
    """One with a text of its own length for each image, or with sequences for each frame."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> None: ...


def given(**how: Any) -> CallArguments:
    module_map = replace(find_adapter(tiny.IMAGES[0].make())(tiny.IMAGES[0].make()), **how)
    inputs = {"hidden_states": torch.zeros(2, 4, 8), "timestep": torch.zeros(2)}
    return CallArguments("Model", module_map, inspect.signature(Model().forward), (), inputs)


def lengths(arguments: Arguments) -> Tensor:
    return torch.tensor([3, 5])


def frames(arguments: Arguments) -> int:
    return 4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"text_lengths": lengths}, "Model: each image has a text length of its own, so the ranks of context par"),
        ({"frames": frames}, "Model: each frame has a sequence of its own, so the ranks of context parallelism have"),
    ],
)
def test_sequences_that_are_not_alike_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedCallError, match=message):
        refuse_unequal_parts("Model", Shards(degree=2), given(**how))
    refuse_unequal_parts("Model", ALONE, given(**how))
    refuse_unequal_parts("Model", Shards(degree=2), given())


def test_text_that_is_held_cannot_be_divided() -> None:
    """The one text token that is left would have to be on all ranks."""
    with pytest.raises(UnsupportedCallError, match=r"Model: steps cannot leave out the text tokens .* over 2 ranks"):
        held_text.refuse_call(Model(), given(), Shards(degree=2))
    held_text.refuse_call(Model(), given(), ALONE)
