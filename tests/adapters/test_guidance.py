"""Guidance whose calls change in mid-run: pipelines of diffusers with guiders, skipped layers, truncated guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LayerSkipConfig,
    SkipLayerGuidance,
)
from drawing import ENCODERS, TEXTS, WARMUP, Draw, calls, drawing
from tiny import ALL, TEXT, noise

import tokenprune
from tokenprune import DensePolicy, NoisePolicy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TINY = {tiny.name: tiny for tiny in ALL}
FULL, PRUNED = 24, 7


def hunyuan_image(guider: Any) -> tuple[Any, Draw]:
    pipe = diffusers.HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=TINY["hunyuan-image"].make(),
        vae=None,
        guider=guider,
        **ENCODERS,
    )
    return drawing(pipe, **TEXTS, height=256, width=384)


def hunyuan_video(guider: Any) -> tuple[Any, Draw]:
    tiny = TINY["hunyuan-video-1.5"]
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, spatial_compression_ratio=16
    )
    pipe = diffusers.HunyuanVideo15Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=replace(tiny, config=tiny.config | {"in_channels": 9}).make(),
        vae=vae,
        guider=guider,
        **ENCODERS,
    )
    return drawing(pipe, **TEXTS, height=128, width=192, num_frames=1)


def stable_diffusion(**skipping: Any) -> tuple[Any, Draw]:
    absent = dict.fromkeys(("vae", "text_encoder_3", "tokenizer_3"))
    pipe = diffusers.StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=TINY["sd3"].make(), **ENCODERS, **absent
    )
    texts = {name: TEXTS[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
    pooled = {f"{sign}pooled_prompt_embeds": noise(1, TEXT, seed=len(sign)) for sign in ("", "negative_")}
    return drawing(pipe, **texts, **pooled, height=64, width=96, **skipping)


GUIDED, BARE = [PRUNED] * 2, [PRUNED]
GUIDERS = {
    "always": ({}, [[FULL] * 2] * WARMUP + [GUIDED] * 4),
    "until": ({"stop": 0.67}, [[FULL] * 2] * WARMUP + [GUIDED] * 2 + [BARE] * 2),
    "from": ({"start": 0.5}, [[FULL]] * WARMUP + [BARE, [PRUNED, FULL], GUIDED, GUIDED]),
    "never": ({"enabled": False}, [[FULL]] * WARMUP + [BARE] * 4),
}


@pytest.mark.parametrize(("options", "expected"), GUIDERS.values(), ids=GUIDERS.keys())
@pytest.mark.parametrize("make", [hunyuan_image, hunyuan_video])
def test_guiders(make: Callable[[Any], tuple[Any, Draw]], options: dict[str, Any], expected: list[list[int]]) -> None:
    """A branch that joins in is computed in full, once; the others go on."""
    assert calls(*make(ClassifierFreeGuidance(guidance_scale=3.0, **options))) == expected


def test_branches_go_by_their_names() -> None:
    """From step 4 on, the unconditional call comes between the two that were there before."""
    guider = SkipLayerGuidance(
        guidance_scale=3.0,
        start=0.67,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=LayerSkipConfig(indices=[1], fqn="transformer_blocks"),
    )
    pipe, draw = hunyuan_image(guider)
    found = [[FULL], [FULL] * 2, GUIDED, GUIDED, [PRUNED, FULL, PRUNED], [PRUNED] * 3]
    assert calls(pipe, draw) == found
    with tokenprune.apply(pipe, DensePolicy()) as handle:
        draw()
        names = [[call.branch.name for call in record.calls] for record in handle._masked.generation.records]
    assert names[3:5] == [["pred_cond", "pred_cond_skip"], ["pred_cond", "pred_uncond", "pred_cond_skip"]]


@pytest.mark.parametrize("skipped", [[0], [1], [0, 2]])
def test_skipped_layers_from_one_step_to_another(skipped: list[int]) -> None:
    """A call of half the batch, in full when it comes for the first time."""
    skipping = {"skip_layer_guidance_start": 0.4, "skip_layer_guidance_stop": 0.8}
    found = calls(*stable_diffusion(skip_guidance_layers=skipped, **skipping))
    assert found == [[FULL], [FULL], BARE, [PRUNED, FULL], GUIDED, BARE]


def test_skipped_layers_from_the_start() -> None:
    found = calls(*stable_diffusion(skip_guidance_layers=[1], skip_layer_guidance_start=-1.0))
    assert found == [[FULL] * 2, [FULL] * 2] + [BARE] * 4


def test_conditional_half_first() -> None:
    tiny = TINY["dit"]
    vae = AutoencoderKL(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipe = diffusers.DiTPipeline(
        transformer=replace(tiny, config=tiny.config | {"num_embeds_ada_norm": 1000}).make(),
        vae=vae,
        scheduler=DDIMScheduler(),
    )
    pipe, draw = drawing(pipe, class_labels=[3, 7], guidance_scale=4.0, output_type="pt")
    assert calls(pipe, draw) == [[16]] * WARMUP + [[4]] * 4
    with tokenprune.apply(pipe, NoisePolicy(0.3, WARMUP)) as handle:
        draw()
        generation = handle._masked.generation
        assert generation.guidance == "cond-first"
        assert generation.history is not None
        assert generation.history.counts.shape == (2, 16)
