"""Pipelines that edit pictures, go on from them or draw in stages, and take noise from torch's global generator."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HeliosScheduler, UniPCMultistepScheduler
from drawing import MASK, MASKS, ONE, PROMPTS, SIZE, SMALL, STEPS, WARMUP, Draw, calls, drawing, transformer, wan_vae
from PIL import Image
from tiny import TEXT, T, noise
from torch import Tensor

import tokenprune
from tokenprune import DensePolicy, NoisePolicy

# HeliosScheduler's own
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


class Tokenizer:
    """Stands for that of Cosmos 3."""

    eos_token_id = 1

    def convert_tokens_to_ids(self, _: str) -> int:
        return 2

    def apply_chat_template(self, conversations: list[dict[str, str]], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[3] * (2 + len(conversations[-1]["content"]) % 7))


def seeded(pipe: Any, draw: Draw) -> tuple[Any, Draw]:
    """The same with the global generator at the same place each time."""

    def again() -> Tensor:
        torch.manual_seed(0)
        return draw()

    return pipe, again


def red(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "red")


def joy() -> tuple[Any, Draw]:
    """Without the sizes that the model was trained at."""
    pipe = diffusers.JoyImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=wan_vae(),
        transformer=transformer("joyimage-edit"),
        processor=None,
        **ONE,
    )
    pipe.vae_image_processor = SimpleNamespace(
        get_default_height_width=lambda _, height, width: (height, width), resize_center_crop=lambda image, _: image
    )
    return seeded(*drawing(pipe, **PROMPTS, **MASKS, **SIZE, image=red(96, 64)))


def joy_plus() -> tuple[Any, Draw]:
    """The same; the picture to edit has a size of its own."""
    pipe = diffusers.JoyImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=wan_vae(),
        transformer=transformer("joyimage-edit-plus"),
        processor=None,
        **ONE,
    )
    pipe.image_processor = SimpleNamespace(
        get_default_height_width=lambda image: (image.height, image.width),
        resize_center_crop=lambda image, _: image,
        preprocess=lambda image, *_, **__: torch.zeros(1, 3, image.height, image.width),
    )
    pipe.encode_prompt_multiple_images = lambda prompt, **_: (noise(1, T, TEXT, seed=len(prompt[0])), MASK)
    return seeded(*drawing(pipe, prompt="a cat", images=[red(64, 48)], **SIZE))


def cosmos(**options: Any) -> tuple[Any, Draw]:
    pipe = diffusers.Cosmos3OmniPipeline(
        transformer=transformer("cosmos3"),
        text_tokenizer=Tokenizer(),
        vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        enable_safety_checker=False,
    )
    return seeded(*drawing(pipe, prompt="a cat", negative_prompt="", **SMALL, **options))


WAYS: dict[str, tuple[Callable[[], tuple[Any, Draw]], int, int]] = {
    "a picture to edit, of the same size": (joy, 2, 24),
    "pictures to edit, both halves in one call": (joy_plus, 1, 24),
    "a video in one sequence with its text": (cosmos, 2, 36),
    "a video whose first frame is given": (lambda: cosmos(image=red(64, 48)), 2, 24),
}
"""What makes the pipeline; calls of a step, tokens."""


@pytest.mark.parametrize(("make", "times", "tokens"), WAYS.values(), ids=WAYS.keys())
def test_a_pipeline_prunes(make: Callable[[], tuple[Any, Draw]], times: int, tokens: int) -> None:
    found = calls(*make())
    assert found == [[tokens] * times] * WARMUP + [[int(0.3 * tokens)] * times] * (STEPS - WARMUP)


def test_a_pyramid_begins_anew_at_each_resolution() -> None:
    """Helios's draws the same video small, then larger: the latents change their shape, and the caches with them."""
    pipe = diffusers.HeliosPyramidPipeline(
        scheduler=HeliosScheduler(stages=2, stage_range=[0, 0.5, 1]),
        transformer=transformer("helios"),
        vae=wan_vae(),
        **ONE,
    )
    pipe.set_progress_bar_config(disable=True)
    extents = {
        "height": 96,
        "width": 128,
        "num_frames": 9,
        "num_latent_frames_per_chunk": 3,
        "history_sizes": [4, 2, 1],
    }
    given = {**PROMPTS, **extents, "pyramid_num_inference_steps_list": [4, 4], "output_type": "latent"}
    _, draw = seeded(pipe, lambda: pipe(**given, generator=torch.Generator().manual_seed(0), return_dict=False)[0])
    plain = draw()
    with tokenprune.apply(pipe, DensePolicy()):
        assert torch.equal(draw(), plain)
    with tokenprune.apply(pipe, NoisePolicy(0.3, WARMUP)) as handle:
        first = draw()
        report = handle.report()
        assert torch.equal(draw(), first)
    assert not torch.equal(first, plain)
    assert report.generations == 2
    assert [step.tokens for step in report.steps] == [144] * WARMUP + [43] * 2
    assert torch.equal(draw(), plain)
