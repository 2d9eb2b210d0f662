"""Pipelines of diffusers with small models and made-up texts, and what a generation of theirs computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from tiny import ALL, TEXT, T, noise
from torch import Tensor, nn

import tokenprune
from tokenprune import DensePolicy, NoisePolicy

STEPS, WARMUP = 6, 2
MASK = torch.ones(1, T, dtype=torch.long)
TEXTS = {
    name: value
    for negative, sign in enumerate(("", "negative_"))
    for name, value in {
        f"{sign}prompt_embeds": noise(1, T, TEXT, seed=negative),
        f"{sign}prompt_embeds_mask": MASK,
        f"{sign}prompt_embeds_2": torch.zeros(1, T, TEXT),
        f"{sign}prompt_embeds_mask_2": MASK,
    }.items()
}
ENCODERS = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
PROMPTS = {name: TEXTS[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
MASKS = dict.fromkeys(("prompt_embeds_mask", "negative_prompt_embeds_mask"), MASK)
ONE = {name: ENCODERS[name] for name in ("text_encoder", "tokenizer")}
SIZE = {"height": 64, "width": 96, "guidance_scale": 3.0}
SMALL = {"height": 48, "width": 64, "num_frames": 9, "guidance_scale": 3.0}
WAN_VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
TINY = {tiny.name: tiny for tiny in ALL}
Draw = Callable[[], Tensor]


def transformer(name: str, **config: Any) -> nn.Module:
    """The small model of that name, with other settings."""
    tiny = TINY[name]
    return replace(tiny, config=tiny.config | config).make()


def wan_vae() -> AutoencoderKLWan:
    """Wan's autoencoder, small."""
    return AutoencoderKLWan(**WAN_VAE, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)


def drawing(pipe: Any, **arguments: Any) -> tuple[Any, Draw]:
    """The pipeline, and what makes latents with it, always the same."""
    pipe.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": STEPS, "output_type": "latent", "return_dict": False, **arguments}
    return pipe, lambda: pipe(**common, generator=torch.Generator().manual_seed(0))[0]


def calls(pipe: Any, draw: Draw, generations: int = 1, **options: Any) -> list[list[int]]:
    """Tokens of every call of a generation's steps; checks that full ones are the plain pipeline's, bit for bit.

    Args:
        pipe: the pipeline.
        draw: makes latents with it.
        generations: how many make one result, where it is drawn piece by piece.
        options: of `tokenprune.apply`.
    """
    plain = draw()
    with tokenprune.apply(pipe, DensePolicy()):
        assert torch.equal(draw(), plain)
    with tokenprune.apply(pipe, NoisePolicy(0.3, WARMUP), **options) as handle:
        first, again = draw(), draw()
        assert torch.equal(first, again)
        assert first.isfinite().all()
        assert not torch.equal(first, plain)
        assert handle.report().generations == 2 * generations
        found = [[call.tokens for call in record.calls] for record in handle._masked.generation.records]
    assert torch.equal(draw(), plain)
    return found
