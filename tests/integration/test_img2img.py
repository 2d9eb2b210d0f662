"""Generations that start in the middle of the scheduler's table: image to image, and inpainting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline
from small import make_sd3
from torch import Tensor

import tokenprune
from tokenprune import BudgetSchedule, CATPolicy

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
STEPS = 10
CALLS = {0.3: 3, 0.8: 8}


@pytest.fixture(params=[StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline], ids=["img2img", "inpaint"])
def editing(request: pytest.FixtureRequest) -> DiffusionPipeline:
    pipe = request.param(**make_sd3(channels=16).components)  # as many as inpainting demands
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def edit(editing: DiffusionPipeline, draw: Callable[..., Tensor]) -> Callable[[float], Tensor]:
    """What becomes of the image at a strength."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    extra: dict[str, Any] = {"height": 32, "width": 32}
    if isinstance(editing, StableDiffusion3InpaintPipeline):
        extra["mask_image"] = mask
    return lambda strength: draw(editing, image=IMAGE, strength=strength, num_inference_steps=STEPS, **extra)


def test_strengths_in_turn(
    editing: DiffusionPipeline, edit: Callable[[float], Tensor], guest_policy: CATPolicy
) -> None:
    plain, fresh = {}, {}
    for strength in CALLS:
        plain[strength] = edit(strength)
        with tokenprune.apply(editing, guest_policy):
            fresh[strength] = edit(strength)
    with tokenprune.apply(editing, guest_policy) as handle:
        for strength in (0.8, 0.3, 0.8):
            assert torch.equal(edit(strength), fresh[strength])
            assert [step.tokens for step in handle.report().steps] == [64] * 3 + [19] * (CALLS[strength] - 3)
    assert torch.equal(fresh[0.3], plain[0.3])
    assert not torch.equal(fresh[0.8], plain[0.8])
    assert torch.equal(edit(0.8), plain[0.8])


@pytest.mark.parametrize("strength", CALLS)
def test_a_budget_is_of_the_steps_that_are_taken(
    editing: DiffusionPipeline, edit: Callable[[float], Tensor], strength: float
) -> None:
    """Not of those that the table holds: a short generation has the full steps of a short generation."""
    with tokenprune.apply(editing, CATPolicy(num_clusters=5), schedule=BudgetSchedule(0.6)) as handle:
        edit(strength)
        report = handle.report()
    fractions = BudgetSchedule(0.6).fractions(CALLS[strength])
    assert [step.tokens for step in report.steps] == [int(64 * fraction) for fraction in fractions]
    assert report.steps[0].full
    assert 0.5 < report.tokens / report.dense_tokens <= 0.6
