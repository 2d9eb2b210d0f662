"""Real diffusers pipelines, pruned: guidance, batches, resolutions, saving and loading, interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchHeunDiscreteScheduler, PixArtSigmaPipeline, StableDiffusion3Pipeline
from torch import Tensor

import tokenprune
from tokenprune import CATPolicy, SelectionPolicy

STEPS = 7
POLICY = CATPolicy(alpha=0.3, warmup_steps=3, num_clusters=5)
PROMPT = "a red circle on a green background"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "sd3": {"max_sequence_length": 1},
    "pixart": {"max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False},
}


@pytest.fixture(params=["sd3", "pixart"])
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return request.getfixturevalue(f"{request.param}_pipeline")


def draw(pipe: DiffusionPipeline, seed: int = 0, size: tuple[int, int] = (32, 32), **arguments: Any) -> Tensor:
    name = "sd3" if isinstance(pipe, StableDiffusion3Pipeline) else "pixart"
    arguments = {"prompt": PROMPT, "num_inference_steps": STEPS, "guidance_scale": 4.0} | ARGUMENTS[name] | arguments
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    return pipe(height=height, width=width, generator=generator, output_type="latent", **arguments).images


def test_pruning_changes_the_picture_and_remove_restores_it(pipe: DiffusionPipeline) -> None:
    plain = draw(pipe)
    with tokenprune.apply(pipe, POLICY) as handle:
        pruned = draw(pipe)
        report = handle.report()
    assert not torch.equal(plain, pruned)
    assert torch.equal(plain, draw(pipe))
    assert [step.full for step in report.steps] == [True] * 3 + [False] * 4
    assert [step.tokens for step in report.steps] == [64] * 3 + [19] * 4
    assert report.token_counts is not None
    assert report.token_counts.shape == (1, 64)
    assert int(report.token_counts.sum()) == 3 * 64 + 4 * 19


def test_transformer_and_pipeline_are_the_same_target(pipe: DiffusionPipeline) -> None:
    with tokenprune.apply(pipe, POLICY):
        through_pipeline = draw(pipe)
    with tokenprune.apply(pipe.transformer, POLICY):
        assert torch.equal(through_pipeline, draw(pipe))


def test_alpha_one_is_the_plain_model(pipe: DiffusionPipeline) -> None:
    plain = draw(pipe)
    with tokenprune.apply(pipe, CATPolicy(alpha=1.0, warmup_steps=1)):
        assert torch.equal(plain, draw(pipe))


@pytest.mark.parametrize("way", [POLICY, 0.5], ids=["policy", "recommended plan"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_images_per_prompt_are_independent(
    pipe: DiffusionPipeline, way: SelectionPolicy | float, guidance_scale: float
) -> None:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with tokenprune.apply(pipe, tokenprune.plan(pipe, way) if isinstance(way, float) else way):
        together = draw(pipe, guidance_scale=guidance_scale, num_images_per_prompt=2, latents=latents)
        for image in range(2):
            alone = draw(pipe, guidance_scale=guidance_scale, latents=latents[image : image + 1])
            torch.testing.assert_close(together[image : image + 1], alone, atol=1e-4, rtol=1e-4)


def test_guidance_shares_one_selection_per_image(pipe: DiffusionPipeline) -> None:
    with tokenprune.apply(pipe, POLICY) as handle:
        draw(pipe, num_images_per_prompt=3)
        counts = handle.report().token_counts
    assert counts is not None
    assert counts.shape == (3, 64)
    assert not torch.equal(counts[0], counts[1])


@pytest.mark.parametrize("size", [(32, 48), (16, 32), (48, 48)])
def test_any_resolution_in_turn(pipe: DiffusionPipeline, size: tuple[int, int]) -> None:
    if isinstance(pipe, StableDiffusion3Pipeline):
        size = (min(size[0], 32), min(size[1], 32)) if max(size) > 64 else size
    with tokenprune.apply(pipe, POLICY):
        fresh = draw(pipe, size=size)
    with tokenprune.apply(pipe, POLICY) as handle:
        draw(pipe)
        assert torch.equal(fresh, draw(pipe, size=size))
        assert handle.report().grid == (size[0] // 4, size[1] // 4)


def test_saved_and_loaded_pipelines_prune_the_same(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    with tokenprune.apply(pipe, POLICY):
        pruned = draw(pipe)
        pipe.save_pretrained(tmp_path)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if isinstance(pipe, StableDiffusion3Pipeline) else {}
    loaded = type(pipe).from_pretrained(tmp_path, dtype=torch.float32, **absent)
    loaded.set_progress_bar_config(disable=True)
    with tokenprune.apply(loaded, POLICY):
        assert torch.equal(pruned, draw(loaded))


def test_interrupted_generation_leaves_no_trace(sd3_pipeline: StableDiffusion3Pipeline) -> None:
    pipe = sd3_pipeline

    def interrupt(
        pipe: StableDiffusion3Pipeline, step: int, timestep: Tensor, values: dict[str, Any]
    ) -> dict[str, Any]:
        pipe._interrupt = step >= 4
        return values

    with tokenprune.apply(pipe, POLICY):
        fresh = draw(pipe, seed=3)
    with tokenprune.apply(pipe, POLICY):
        draw(pipe, seed=2, callback_on_step_end=interrupt)
        assert torch.equal(fresh, draw(pipe, seed=3))


def test_heun_steps_are_told_apart(sd3_pipeline: StableDiffusion3Pipeline) -> None:
    pipe = StableDiffusion3Pipeline(**{**sd3_pipeline.components, "scheduler": FlowMatchHeunDiscreteScheduler()})
    pipe.set_progress_bar_config(disable=True)
    with tokenprune.apply(pipe, POLICY) as handle:
        draw(pipe)
        assert len(handle.report().steps) == 2 * STEPS - 1


def test_skip_layer_guidance_is_a_branch_of_its_own(sd3_pipeline: StableDiffusion3Pipeline) -> None:
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.9}
    with tokenprune.apply(sd3_pipeline, POLICY) as handle:
        draw(sd3_pipeline, **skipping)
        report = handle.report()
        assert len(report.steps) == STEPS
        assert [step.tokens for step in report.steps][-1] == 19


def test_learned_variance_is_not_noise(pixart_pipeline: PixArtSigmaPipeline) -> None:
    seen = []

    class Watching(tokenprune.ScorePolicy):
        def score(self, seen_now: tokenprune.Observation, memory: tokenprune.Memory) -> Tensor:
            seen.append(seen_now.prediction)
            return seen_now.relative_noise.norm(dim=-1)

    with tokenprune.apply(pixart_pipeline, Watching(alpha=0.5, warmup_steps=2)):
        draw(pixart_pipeline)
    assert {tuple(prediction.shape) for prediction in seen} == {(1, 64, 2 * 2 * 4)}


def test_cross_attention_keys_and_values_are_not_computed_again(pixart_pipeline: PixArtSigmaPipeline) -> None:
    rows = []
    layer = pixart_pipeline.transformer.transformer_blocks[0].attn2.to_k
    watch = layer.register_forward_hook(lambda _module, args, _output: rows.append(args[0].shape[1]))
    with tokenprune.apply(pixart_pipeline, POLICY):
        draw(pixart_pipeline)
    watch.remove()
    assert rows == [8] * 3 + [0] * 4


def test_new_text_in_mid_generation_is_computed(pixart_pipeline: PixArtSigmaPipeline) -> None:
    transformer = pixart_pipeline.transformer
    times = torch.linspace(900, 100, 4)
    generator = torch.Generator().manual_seed(0)
    latents, first, second = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 8, 32), (1, 8, 32))
    )
    results = []
    for last_text in (first, second):
        with torch.no_grad(), tokenprune.apply(transformer, CATPolicy(alpha=0.5, warmup_steps=2)):
            for step, text in enumerate((first, first, first, last_text)):
                output = transformer(
                    latents,
                    encoder_hidden_states=text,
                    timestep=times[step].expand(1),
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                ).sample
        results.append(output)
    assert not torch.allclose(results[0], results[1])
