"""Pipelines whose models get copies of timesteps: their sampler tells where a generation begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    IPNDMScheduler,
)
from small import make_autoencoder
from torch import Tensor

import tokenprune
from tokenprune import BudgetSchedule, CATPolicy, WarmupSchedule

POLICY = CATPolicy(0.3, 2, num_clusters=5)
IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
TEXT = {
    "prompt_embeds": torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1)),
    "pooled_prompt_embeds": torch.randn(1, 16, generator=torch.Generator().manual_seed(2)),
}


@pytest.fixture
def flux() -> FluxPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = FluxPipeline(scheduler=scheduler, vae=make_autoencoder(), transformer=transformer.eval(), **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, steps: int, seed: int = 0, **more: Any) -> Tensor:
    shared = {"height": 32, "width": 32, "output_type": "latent", "num_inference_steps": steps}
    return pipe(**TEXT, **shared, **more, generator=torch.Generator().manual_seed(seed)).images


def edit(pipe: FluxPipeline, strength: float, steps: int = 10) -> Tensor:
    editing = FluxImg2ImgPipeline(**pipe.components)
    editing.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return draw(editing, steps, 5, image=IMAGE, strength=strength)


class Stop(Exception):  # noqa: N818
    pass


def stop_after(count: int) -> Callable[..., Any]:
    def callback(pipe: Any, step: int, time: Any, found: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == count:
            raise Stop
        return found

    return callback


@pytest.mark.parametrize("given", ["pipeline", "transformer"])
def test_image_to_image_below_the_end_of_the_last_picture(flux: FluxPipeline, given: str) -> None:
    """Four steps end at a level of 0.25; the next pictures begin below, with the same text tensors."""
    target = flux if given == "pipeline" else flux.transformer
    with tokenprune.apply(target, POLICY):
        fresh = edit(flux, 0.2, 20)
    with tokenprune.apply(target, POLICY) as handle:
        draw(flux, 4)
        assert torch.equal(edit(flux, 0.2, 20), fresh)
        assert [step.full for step in handle.report().steps] == [True, True, False, False]


@pytest.mark.parametrize("given", ["pipeline", "transformer"])
@pytest.mark.parametrize("count", [1, 3])
def test_after_an_interrupted_picture(flux: FluxPipeline, given: str, count: int) -> None:
    target = flux if given == "pipeline" else flux.transformer
    with tokenprune.apply(target, POLICY):
        fresh = edit(flux, 0.6)
    with tokenprune.apply(target, POLICY):
        with pytest.raises(Stop):
            draw(flux, 10, callback_on_step_end=stop_after(count))
        assert torch.equal(edit(flux, 0.6), fresh)


def test_the_same_picture_again_after_one_step(flux: FluxPipeline) -> None:
    with tokenprune.apply(flux, POLICY):
        fresh = draw(flux, 6)
    with tokenprune.apply(flux, POLICY) as handle:
        with pytest.raises(Stop):
            draw(flux, 6, callback_on_step_end=stop_after(1))
        assert torch.equal(draw(flux, 6), fresh)
        assert handle.report().generations == 2


def test_a_scheduler_that_is_put_in_later(flux: FluxPipeline) -> None:
    with tokenprune.apply(flux, POLICY) as handle:
        draw(flux, 4)
        flux.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
        draw(flux, 5)
        assert handle.report().generations == 2
        assert len(handle.report().steps) == 5


def test_budgets_and_last_steps_are_known_where_the_model_gets_copies(flux: FluxPipeline) -> None:
    with tokenprune.apply(flux, POLICY, schedule=BudgetSchedule(0.5)) as handle:
        draw(flux, 20)
        assert handle.report().tokens_ratio == pytest.approx(0.5, abs=0.02)
    with tokenprune.apply(flux, POLICY, schedule=WarmupSchedule(0.3, 2, last_full=2)) as handle:
        draw(flux, 8)
        assert [step.full for step in handle.report().steps] == [True] * 2 + [False] * 4 + [True] * 2


def steps_of(scheduler: Any, count: int) -> Iterator[Tensor]:
    scheduler.set_timesteps(count)
    yield from scheduler.timesteps


def test_a_table_that_ends_before_its_memory_does(flux: FluxPipeline) -> None:
    """IPNDM drops the last entry of its table, which stays behind it in memory."""
    flux.scheduler = IPNDMScheduler()
    latents, ids = torch.randn(1, 64, 16), torch.zeros(64, 3)
    ids[:, 1], ids[:, 2] = torch.arange(64) // 8, torch.arange(64) % 8
    given = {
        "encoder_hidden_states": TEXT["prompt_embeds"],
        "pooled_projections": TEXT["pooled_prompt_embeds"],
        "img_ids": ids,
        "txt_ids": torch.zeros(6, 3),
    }
    schedule = WarmupSchedule(0.3, 2, last_full=1)
    with tokenprune.apply(flux, POLICY, schedule=schedule, guidance="none") as handle, torch.no_grad():
        for time in steps_of(flux.scheduler, 7):
            flux.transformer(hidden_states=latents, timestep=time.expand(1), **given)
            latents = latents * 0.99
        assert [step.full for step in handle.report().steps] == [True] * 2 + [False] * 4 + [True]
