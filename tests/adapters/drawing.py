"""Pipelines of diffusers with small models and made-up texts, and what a generation of theirs computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny import TEXT, T, noise
from torch import Tensor

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
Draw = Callable[[], Tensor]


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
