"""Callbacks that change what the pipeline works with, or stop it, in the middle of a generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

import tokenprune
from tokenprune import CATPolicy

DENSE = CATPolicy(alpha=1.0, warmup_steps=1)
TEXTS = ["prompt_embeds", "pooled_prompt_embeds"]


def change_latents(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
    return {"latents": values["latents"] * 1.1} if step == 4 else values


def change_texts(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value + 1 for name, value in values.items() if name != "latents"} if step == 3 else values


def end_guidance(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
    if step != 3:
        return values
    pipe._guidance_scale = 0.0
    return {name: value.chunk(2)[1] for name, value in values.items() if name != "latents"}


def check(
    pipe: DiffusionPipeline, draw: Callable[..., Tensor], policy: CATPolicy, callback: Any, names: list[str]
) -> list[int]:
    """The callback acts, is followed exactly without pruning, and leaves nothing; returns the tokens of the steps."""
    wanted = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", *names]}
    plain = draw(pipe, **wanted)
    with tokenprune.apply(pipe, policy):
        undisturbed = draw(pipe)
    with tokenprune.apply(pipe, DENSE):
        assert torch.equal(draw(pipe, **wanted), plain)
    with tokenprune.apply(pipe, policy) as handle:
        pruned = draw(pipe, **wanted)
        steps = [step.tokens for step in handle.report().steps]
        assert torch.equal(draw(pipe), undisturbed)
        assert torch.equal(draw(pipe, **wanted), pruned)
    assert not torch.allclose(pruned, undisturbed)
    assert not torch.equal(pruned, plain)
    return steps


def test_other_latents(sd3: StableDiffusion3Pipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy) -> None:
    assert check(sd3, draw, guest_policy, change_latents, []) == [64] * 3 + [19] * 3


def test_another_text(sd3: StableDiffusion3Pipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy) -> None:
    assert check(sd3, draw, guest_policy, change_texts, TEXTS) == [64] * 3 + [19] * 3


def test_guidance_that_ends(
    sd3: StableDiffusion3Pipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    """The batch loses a half: a branch of its own, computed in full once."""
    assert check(sd3, draw, guest_policy, end_guidance, TEXTS) == [64] * 3 + [19, 64, 19]


def test_interruption(sd3: StableDiffusion3Pipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy) -> None:
    with tokenprune.apply(sd3, guest_policy):
        fresh = draw(sd3, seed=3)
    for last in range(5):

        def interrupt(
            pipe: Any, step: int, timestep: Tensor, values: dict[str, Any], last: int = last
        ) -> dict[str, Any]:
            pipe._interrupt = step >= last
            return values

        with tokenprune.apply(sd3, guest_policy) as handle:
            draw(sd3, seed=2, callback_on_step_end=interrupt)
            assert len(handle.report().steps) == last + 1
            assert torch.equal(draw(sd3, seed=3), fresh)
