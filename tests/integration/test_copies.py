"""Several pipelines on one transformer, several handles on several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import PixArtSigmaPipeline, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from torch import Tensor

import tokenprune
from tokenprune import AlreadyPrunedError, CATPolicy, NoisePolicy

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def editing(sd3: StableDiffusion3Pipeline) -> StableDiffusion3Img2ImgPipeline:
    pipe = StableDiffusion3Img2ImgPipeline.from_pipe(sd3)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer is sd3.transformer
    return pipe


def test_one_transformer_alternately(
    sd3: StableDiffusion3Pipeline,
    editing: StableDiffusion3Img2ImgPipeline,
    draw: Callable[..., Tensor],
    guest_policy: CATPolicy,
) -> None:
    edit = {"image": IMAGE, "strength": 0.8, "height": 32, "width": 32}
    with tokenprune.apply(sd3, guest_policy):
        drawn = draw(sd3)
    with tokenprune.apply(editing, guest_policy):
        edited = draw(editing, **edit)
    with tokenprune.apply(sd3, guest_policy) as handle:
        for _ in range(2):
            assert torch.equal(draw(sd3), drawn)
            assert torch.equal(draw(editing, **edit), edited)
        assert handle.report().generations == 4
        with pytest.raises(AlreadyPrunedError, match=r"already pruned by another handle; call its remove\(\) first"):
            tokenprune.apply(editing, NoisePolicy())
        assert torch.equal(draw(sd3), drawn)


def test_a_generation_within_another(
    sd3: StableDiffusion3Pipeline,
    editing: StableDiffusion3Img2ImgPipeline,
    draw: Callable[..., Tensor],
    guest_policy: CATPolicy,
) -> None:
    """A picture drawn by a callback: it is as if drawn alone, and the one under way starts afresh after it."""
    inner = []

    def draw_another(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            inner.append(draw(editing, image=IMAGE, strength=0.8, height=32, width=32))
        return values

    with tokenprune.apply(sd3, guest_policy):
        alone = draw(editing, image=IMAGE, strength=0.8, height=32, width=32)
    with tokenprune.apply(sd3, guest_policy) as handle:
        other = StableDiffusion3Pipeline(**{**sd3.components, "scheduler": type(sd3.scheduler)(shift=1.5)})
        other.set_progress_bar_config(disable=True)
        draw(other, callback_on_step_end=draw_another)
        assert [step.tokens for step in handle.report().steps] == [64, 64]
        assert torch.equal(inner[0], alone)
        after = draw(sd3)
    with tokenprune.apply(sd3, guest_policy):
        assert torch.equal(draw(sd3), after)


def test_two_models_with_a_handle_each(
    sd3: StableDiffusion3Pipeline, pixart: PixArtSigmaPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    fresh = []
    for pipe in (sd3, pixart):
        with tokenprune.apply(pipe, guest_policy):
            fresh.append(draw(pipe))
    plain = draw(sd3)
    first, second = tokenprune.apply(sd3, guest_policy), tokenprune.apply(pixart, guest_policy)
    for pipe, expected in zip((sd3, pixart), fresh, strict=True):
        assert torch.equal(draw(pipe), expected)

    def draw_other(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            assert torch.equal(draw(pixart), fresh[1])
        return values

    assert torch.equal(draw(sd3, callback_on_step_end=draw_other), fresh[0])
    first.remove()
    assert torch.equal(draw(sd3), plain)
    assert torch.equal(draw(pixart), fresh[1])
    second.remove()
