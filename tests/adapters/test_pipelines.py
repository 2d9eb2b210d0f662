"""Pipelines of diffusers as they are, one for each pattern of guidance, with the small models and made-up text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import ALL, TEXT, T, noise
from torch import Tensor

import tokenprune
from tokenprune import DensePolicy, NoisePolicy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TINY = {tiny.name: tiny for tiny in ALL}
STEPS, WARMUP = 5, 2
SIZE = {"height": 64, "width": 96}
TEXTS = {"prompt_embeds": noise(1, T, TEXT), "negative_prompt_embeds": noise(1, T, TEXT, seed=1)}
VALID = dict.fromkeys(("prompt_attention_mask", "negative_prompt_attention_mask"), torch.ones(1, T, dtype=torch.long))


@dataclass(frozen=True)
class Pattern:
    """A pipeline, its small model, how to call it, and how often it then calls the model at a step."""

    pipeline: str
    model: str
    arguments: dict[str, Any]
    calls: int
    guidance: str = "none"
    tokens: int = 24
    parts: tuple[str, ...] = ("vae", "text_encoder", "tokenizer")


FLUX_PARTS = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
POOLED = {"pooled_prompt_embeds": noise(1, TEXT), "negative_pooled_prompt_embeds": noise(1, TEXT, seed=1)}
PATTERNS = {
    "distilled": Pattern(
        "FluxPipeline",
        "flux",
        {"prompt_embeds": TEXTS["prompt_embeds"], "pooled_prompt_embeds": POOLED["pooled_prompt_embeds"], **SIZE},
        1,
        parts=FLUX_PARTS,
    ),
    "a call for each branch, with cache_context": Pattern(
        "FluxPipeline", "flux", {**TEXTS, **POOLED, **SIZE, "true_cfg_scale": 3.0}, 2, parts=FLUX_PARTS
    ),
    "a call for each branch, texts of different lengths": Pattern(
        "QwenImagePipeline",
        "qwenimage",
        {
            "prompt_embeds": noise(1, T, TEXT),
            "prompt_embeds_mask": torch.ones(1, T, dtype=torch.long),
            "negative_prompt_embeds": noise(1, T - 2, TEXT),
            "negative_prompt_embeds_mask": torch.ones(1, T - 2, dtype=torch.long),
            **SIZE,
        },
        2,
    ),
    "a call for each branch, rising times": Pattern("Lumina2Pipeline", "lumina2", {**TEXTS, **VALID, **SIZE}, 2),
    "a call for each branch, video": Pattern(
        "WanPipeline", "wan", {**TEXTS, "height": 48, "width": 64, "num_frames": 9}, 2, tokens=36
    ),
    "unconditional half first": Pattern("AuraFlowPipeline", "auraflow", {**TEXTS, **VALID, **SIZE}, 1, "uncond-first"),
    "conditional half first, as a list": Pattern(
        "ZImagePipeline",
        "z-image",
        {name: [embedded[0]] for name, embedded in TEXTS.items()} | SIZE,
        1,
        "cond-first",
    ),
    "unconditional half first, video as tokens": Pattern(
        "LTXPipeline", "ltx", {**TEXTS, **VALID, "height": 96, "width": 128, "num_frames": 9}, 1, "uncond-first"
    ),
}


@pytest.fixture(params=PATTERNS.values(), ids=PATTERNS.keys())
def pattern(request: pytest.FixtureRequest) -> Pattern:
    return request.param


def build(pattern: Pattern) -> tuple[Any, Callable[[int], Tensor]]:
    """The pipeline, and what makes latents with it."""
    parts = dict.fromkeys(pattern.parts)
    transformer = TINY[pattern.model].make()
    pipe = getattr(diffusers, pattern.pipeline)(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts
    )
    pipe.set_progress_bar_config(disable=True)

    def draw(seed: int) -> Tensor:
        made = pipe(
            **pattern.arguments,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            return_dict=False,
        )
        return made[0]

    return pipe, draw


def test_a_pipeline_prunes(pattern: Pattern) -> None:
    pipe, draw = build(pattern)
    plain = [draw(seed) for seed in (0, 1)]
    with tokenprune.apply(pipe, DensePolicy()):
        assert torch.equal(draw(0), plain[0])
    count = int(0.3 * pattern.tokens)
    with tokenprune.apply(pipe, NoisePolicy(0.3, WARMUP)) as handle:
        pruned = [draw(seed) for seed in (0, 1, 0)]
        generation = handle._masked.generation
        assert handle._masked.generations == 3
        assert generation.guidance == pattern.guidance
        assert [len(record.calls) for record in generation.records] == [pattern.calls] * STEPS
        tokens = [call.tokens for record in generation.records for call in record.calls]
        assert tokens == [pattern.tokens] * WARMUP * pattern.calls + [count] * (STEPS - WARMUP) * pattern.calls
    assert torch.equal(pruned[0], pruned[2])
    for made, dense in zip(pruned[:2], plain, strict=True):
        assert not torch.equal(made, dense)
        assert made.isfinite().all()
    assert torch.equal(draw(1), plain[1])


def calls_of(name: str, **arguments: Any) -> list[list[int]]:
    """Tokens of every call of the last generation's steps, with guidance that ends half-way."""
    pattern = replace(PATTERNS[name], arguments=PATTERNS[name].arguments | arguments)
    pipe, draw = build(pattern)
    with tokenprune.apply(pipe, NoisePolicy(0.3, WARMUP)) as handle:
        first, again = draw(0), draw(0)
        assert torch.equal(first, again)
        assert first.isfinite().all()
        return [[call.tokens for call in record.calls] for record in handle._masked.generation.records]


def test_unconditional_calls_that_end_half_way() -> None:
    found = calls_of("a call for each branch, rising times", cfg_trunc_ratio=0.6)
    assert found == [[24, 24], [24, 24], [7, 7], [7], [7]]


def test_a_batch_that_loses_its_unconditional_half() -> None:
    """Keys and values of another batch are of no use: one full step, and the generation goes on."""
    found = calls_of("conditional half first, as a list", cfg_truncation=0.3)
    assert found == [[24], [24], [24], [7], [7]]
    assert calls_of("conditional half first, as a list", cfg_truncation=0.6)[2:] == [[7], [24], [7]]
