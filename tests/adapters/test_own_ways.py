"""Pipelines that call their transformer in ways of their own: with its cache, piece by piece, two by turns.

What needs an encoder to be built gets made-up embeddings in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    ClassifierFreeGuidance,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeliosScheduler,
)
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from drawing import (
    ENCODERS,
    MASK,
    MASKS,
    ONE,
    PROMPTS,
    SIZE,
    SMALL,
    STEPS,
    TEXTS,
    TINY,
    WARMUP,
    Draw,
    calls,
    drawing,
    transformer,
    wan_vae,
)
from PIL import Image
from tiny import TEXT, T, ids, noise
from versions import needs

import tokenprune
from tokenprune import DensePolicy, NoisePolicy, UnsupportedCallError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # HeliosScheduler's own
]


def given(*_: Any, **__: Any) -> torch.Tensor:
    """What an encoder of pictures would have given."""
    return noise(1, T, TEXT)


class Processor:
    """Stands for Qwen-Image 2.1's, which the pipeline asks for the length of its own words."""

    tokenizer = SimpleNamespace(encode=list)

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[1, 2, 3]]


class Vae:
    """Stands for FLUX.2's, whose statistics the pipeline takes for those of latents."""

    dtype = torch.float32
    config = SimpleNamespace(batch_norm_eps=0.0, block_out_channels=(1,) * 4)
    bn = SimpleNamespace(running_mean=torch.zeros(4), running_var=torch.ones(4))


def qwen(**options: Any) -> tuple[Any, Draw]:
    pipe = diffusers.QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("qwenimage-2.1"),
        processor=Processor(),
        vae=None,
        text_encoder=None,
    )
    return drawing(pipe, **PROMPTS, **MASKS, height=64, width=96, true_cfg_scale=3.0, **options)


def anyflow() -> tuple[Any, Draw]:
    model = transformer("anyflow")
    pipe = diffusers.AnyFlowPipeline(scheduler=FlowMapEulerDiscreteScheduler(), transformer=model, vae=None, **ONE)
    return drawing(pipe, **PROMPTS, **SMALL)


def fibo() -> tuple[Any, Draw]:
    pipe = diffusers.BriaFiboPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer("bria-fibo"), vae=None, **ONE
    )
    layers = [noise(1, T, TEXT, seed=layer) for layer in range(4)]
    pipe.text_encoder = SimpleNamespace(dtype=torch.float32)
    pipe.get_prompt_embeds = lambda prompt, *_, **__: (noise(1, T, TEXT, seed=len(prompt[0])), layers, torch.ones(1, T))
    return drawing(pipe, prompt=["a cat"], **SIZE)


def fibo2() -> tuple[Any, Draw]:
    pipe = diffusers.BriaFibo2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("bria-fibo2"),
        **dict.fromkeys(("vae", "text_encoder", "processor")),
    )
    texts = {f"{sign}prompt_embeds": noise(1, 2, T, TEXT, seed=len(sign)) for sign in ("", "negative_")}
    return drawing(pipe, **texts, **{name: mask.bool() for name, mask in MASKS.items()}, **SIZE)


def motif() -> tuple[Any, Draw]:
    pipe = diffusers.MotifVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("motif", in_channels=9),
        vae=wan_vae(),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
        feature_extractor=None,
        **ONE,
    )
    masks = {"prompt_attention_mask": MASK, "negative_prompt_attention_mask": MASK}
    return drawing(pipe, **PROMPTS, **masks, height=48, width=64, num_frames=9)


def chronoedit() -> tuple[Any, Draw]:
    pipe = diffusers.ChronoEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("chronoedit", in_channels=12),
        vae=wan_vae(),
        **dict.fromkeys(("image_encoder", "image_processor")),
        **ONE,
    )
    pipe.encode_image = given
    return drawing(pipe, **PROMPTS, **SMALL, image=torch.zeros(1, 3, 48, 64))


def kandinsky(sound: bool = False) -> tuple[Any, Draw]:
    """Without the sound its attention to the video does not run."""
    pipe = diffusers.Kandinsky6TI2VAPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("kandinsky6"),
        **dict.fromkeys(("vae", "audio_vae", "vocoder")),
        **ENCODERS,
    )
    pooled = {f"{sign}pooled_prompt_embeds": noise(1, TEXT, seed=len(sign)) for sign in ("", "negative_")}
    pipe.audio_vae = pipe.vocoder = SimpleNamespace()  # which latents do not need
    return drawing(pipe, **PROMPTS, **pooled, **SMALL, sample_audio=sound)


def klein(references: bool = True) -> tuple[Any, Draw]:
    pipe = diffusers.Flux2KleinKVPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("flux2", guidance_embeds=False),
        vae=Vae(),
        **ONE,
    )
    given = {}
    if references:
        pipe.prepare_image_latents = lambda *_, **__: (noise(1, 30, 4), ids(5, 6, group=10, columns=4)[None])
        given = {"image": Image.new("RGB", (64, 64))}
    return drawing(pipe, prompt_embeds=PROMPTS["prompt_embeds"], height=64, width=96, **given)


def helios(**options: Any) -> tuple[Any, Draw]:
    scheduler = HeliosScheduler(stages=1)
    pipe = diffusers.HeliosPipeline(scheduler=scheduler, transformer=transformer("helios"), vae=wan_vae(), **ONE)
    pieces = {"num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1]}
    return drawing(pipe, **PROMPTS, **SMALL | pieces | options)


TWICE, ONCE = 2, 1
WAYS: dict[str, tuple[Callable[[], tuple[Any, Draw]], int, int, int]] = {
    "with the model's cache": (qwen, TWICE, 24, 1),
    "without it": (lambda: qwen(use_kv_cache=False), TWICE, 24, 1),
    "a timestep for each frame": (anyflow, ONCE, 36, 1),
    "texts for each layer": (fibo, ONCE, 24, 1),
    "a gist of the text": (fibo2, TWICE, 24, 1),
    "a guider": (motif, TWICE, 36, 1),
    "a picture to go on from": (chronoedit, TWICE, 24, 1),
    "video without its sound": (kandinsky, TWICE, 36, 1),
    "video with its sound": (lambda: kandinsky(sound=True), TWICE, 36, 1),
    "reference images in the first call alone": (klein, ONCE, 24, 1),
    "no reference images": (lambda: klein(references=False), ONCE, 24, 1),
    "one piece": (helios, TWICE, 36, 1),
    "two pieces": (lambda: helios(num_frames=17), TWICE, 36, 2),
}
"""What makes the pipeline; calls of a step, tokens, generations."""


@pytest.mark.parametrize(
    ("make", "times", "tokens", "generations"),
    [pytest.param(*way, marks=needs("T5Gemma2Encoder") if way[0] is motif else ()) for way in WAYS.values()],
    ids=WAYS.keys(),
)
def test_a_pipeline_prunes(make: Callable[[], tuple[Any, Draw]], times: int, tokens: int, generations: int) -> None:
    found = calls(*make(), generations=generations)
    assert found == [[tokens] * times] * WARMUP + [[int(0.3 * tokens)] * times] * (STEPS - WARMUP)


@pytest.mark.parametrize("make", [qwen, fibo2, helios])
def test_a_pipeline_skips(make: Callable[[], tuple[Any, Draw]]) -> None:
    """The recommended plan, with what the models' outputs and caches have beside the image."""
    pipe, draw = make()
    plain = draw()
    with tokenprune.apply(pipe, tokenprune.plan(pipe, 0.5)) as handle:
        first, again = draw(), draw()
        steps = [step.tokens for step in handle.report().steps]
    assert torch.equal(first, again)
    assert first.isfinite().all()
    assert not torch.equal(first, plain)
    assert steps.count(0) == STEPS // 2
    assert torch.equal(draw(), plain)


def test_no_step_is_skipped_where_a_call_gives_more_than_a_prediction() -> None:
    """FLUX.2 klein-KV's first one gives the cache of the reference images, too."""
    pipe, draw = klein()
    with (
        tokenprune.apply(pipe, tokenprune.plan(pipe, 0.5)),
        pytest.raises(UnsupportedCallError, match=r"got 2 values; .* tokenprune.plan\(..., skips=False\)"),
    ):
        draw()


def test_pictures_to_edit_that_are_refused() -> None:
    """By GLM-Image and Z-Image, at the first call, with what to do."""
    glm, z_image = (TINY[name] for name in ("glm-image", "z-image"))
    caches = GlmImageKVCache(num_layers=2)
    caches.set_mode("write")
    for tiny, more, message in (
        (glm, {"kv_caches": caches}, r"kv_caches: expected none in use, got mode 'write'.*remove\(\) the handle"),
        (z_image, {"x": [[latents] for latents in z_image.inputs()["x"]]}, r"got lists of several \(the omni mode\)"),
    ):
        model = tiny.make()
        refused = pytest.raises(UnsupportedCallError, match=message)
        with tokenprune.apply(model, NoisePolicy(0.3, WARMUP)), torch.no_grad(), refused:
            model(**{**tiny.inputs(), **more})


@pytest.mark.parametrize(
    ("more", "got"),
    [
        ({"sound_tokens": []}, r"got 1 with frames \[\[0, 1, 2\]\] to draw and sound_tokens, which share one sequence"),
        ({"vision_noisy_frame_indexes": [torch.tensor([0, 2])]}, r"got 1 with frames \[\[0, 2\]\] to draw"),
    ],
)
def test_what_shares_the_sequence_of_a_video_is_refused(more: dict[str, Any], got: str) -> None:
    tiny = TINY["cosmos3"]
    model = tiny.make()
    refused = pytest.raises(UnsupportedCallError, match=f"^Cosmos3OmniTransformer: expected one video.*{got}")
    with tokenprune.apply(model, NoisePolicy(0.3, WARMUP)), torch.no_grad(), refused:
        model(**{**tiny.inputs(), **more})


def test_a_cache_of_the_models_changes_nothing() -> None:
    """More tokens of text and pictures to edit than the image has; with the cache, blocks get the image alone."""
    model, inputs = transformer("qwenimage-2.1-edit"), TINY["qwenimage-2.1-edit"].inputs()
    *_, drawn = inputs["img_shapes"][0]
    tokens, made, costs = drawn[1] * drawn[2], {}, {}
    assert inputs["hidden_states"].shape[1] - tokens > tokens
    for cached in (False, True):
        cache, outputs = QwenImage21KVCache(2), []
        with tokenprune.apply(model, NoisePolicy(0.3, 1)) as handle, torch.no_grad():
            for step in range(4):
                latents = inputs["hidden_states"].clone()
                latents[:, -tokens:] *= 1 - 0.2 * step
                mode = "cached" if step else "extract"
                keeping = {"kv_cache": cache, "kv_cache_mode": mode} if cached else {}
                time = inputs["timestep"] * (1 - 0.2 * step)
                given = {**inputs, "hidden_states": latents, "timestep": time, **keeping}
                outputs.append(model(**given, return_dict=False)[0][:, -tokens:])
            report = handle.report()
        assert [step.tokens for step in report.steps] == [tokens] + [7] * 3
        made[cached], costs[cached] = outputs, (report.macs.total, report.dense_macs.total)
    for one, other in zip(made[False], made[True], strict=True):
        torch.testing.assert_close(one, other)
    assert all(least < most for least, most in zip(costs[True], costs[False], strict=True))


def test_a_picture_and_frames_before() -> None:
    """Framepack gives its latents in a list."""
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    pipe = diffusers.HunyuanVideoFramepackPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer("hunyuan-framepack"),
        vae=vae,
        **dict.fromkeys(("image_encoder", "feature_extractor")),
        **ENCODERS,
    )
    pipe.encode_image = given
    texts = {"prompt_embeds": TEXTS["prompt_embeds"], "pooled_prompt_embeds": noise(1, TEXT)}
    extents = {"height": 48, "width": 64, "num_frames": 9, "latent_window_size": 3}
    _, draw = drawing(pipe, **texts, **extents, prompt_attention_mask=MASK, image=torch.zeros(1, 3, 48, 64))
    found = calls(pipe, lambda: draw()[-1])
    assert found == [[36]] * WARMUP + [[10]] * (STEPS - WARMUP)


def test_a_transformer_for_each_branch() -> None:
    """Ideogram's get other sequences, of the text and the picture or of the picture alone, at the same step."""
    models = {name: transformer("ideogram4") for name in ("transformer", "unconditional_transformer")}
    pipe = diffusers.Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, prompt_enhancer_head=None, **models, **ONE
    )
    pipe.encode_prompt = lambda *_, **__: (
        noise(1, T + 24, TEXT),
        *pipe._prepare_ids([T], 4, 6, T, torch.device("cpu")),
    )
    guidance = {"guidance_schedule": [3.0] * STEPS, "max_sequence_length": T}
    _, draw = drawing(pipe, prompt="", height=64, width=96, **guidance)
    plain = draw()
    with tokenprune.apply(pipe, DensePolicy()):
        assert torch.equal(draw(), plain)
    for options in ({"policy": NoisePolicy(0.3, WARMUP)}, {"policy": tokenprune.plan(pipe, 0.5)}):
        with tokenprune.apply(pipe, **options) as handle:
            first, again = draw(), draw()
            report = handle.report()
        assert torch.equal(first, again)
        assert not torch.equal(first, plain)
        one, two = ([step.tokens for step in each.steps] for each in report.transformers.values())
        assert one == two
        assert len(one) == STEPS
        assert report.generations == 2
        assert one == [24] * WARMUP + [7] * 4 or one.count(0) == 3
    assert torch.equal(draw(), plain)
