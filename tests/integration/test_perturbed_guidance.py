"""Guidance by a prediction without attention in some layers (PAG, STG), or without those layers, is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    LTX2VideoTransformer3DModel,
    PixArtSigmaPAGPipeline,
    StableDiffusion3PAGPipeline,
)
from diffusers.hooks import HookRegistry, LayerSkipConfig
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from diffusers.models.attention_processor import (
    PAGCFGHunyuanAttnProcessor2_0,
    PAGCFGIdentitySelfAttnProcessor2_0,
    PAGCFGJointAttnProcessor2_0,
    PAGHunyuanAttnProcessor2_0,
    PAGIdentitySelfAttnProcessor2_0,
    PAGJointAttnProcessor2_0,
)
from processors import Oracle
from small import make_pixart, make_sd3
from test_attention_calls import Counts, Planned
from tiny import ALL
from torch import Tensor, nn

import tokenprune
from tokenprune import AttentionRankPolicy, CATPolicy, Taylor
from tokenprune.ops.guidance import Guidance

ATOL = 1e-4
TINY = {tiny.name: tiny for tiny in ALL}
Call = Callable[[nn.Module, Tensor, Tensor], Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(chosen: Tensor) -> Tensor:
    """Tokens [N] of a square image as pixels [1, 1, height, width]."""
    side = int(len(chosen) ** 0.5)
    return chosen.view(1, 1, side, side).repeat_interleave(2, 2).repeat_interleave(2, 3)


def tokens(chosen: Tensor) -> Tensor:
    """Tokens [N] as they are [1, N, 1]."""
    return chosen[None, :, None]


@dataclass
class Branch:
    """A guidance branch: how the model is called, and what an oracle remembers of it.

    Args:
        call: gives the prediction, from model, latents and timestep.
        rows: the batch.
    """

    call: Call
    rows: int = 1
    oracle: Oracle | None = None


def check(
    model: nn.Module,
    latents: Sequence[Tensor],
    branches: Sequence[Branch],
    counts: Sequence[int],
    spread: Callable[[Tensor], Tensor],
) -> None:
    """Each pruned prediction of each branch equals an oracle's, and no other one."""
    size, times = max(counts), torch.linspace(900, 100, len(counts))
    masks = {}
    for step, count in enumerate(counts):
        order = torch.rand(size, generator=torch.Generator().manual_seed(step)).argsort().argsort()
        masks[step] = (order < count).view(1, 1, size)
    expected, actual, plain = [], [], []
    for branch in branches:
        branch.oracle = Oracle(model, branch.call, labelled=False)
        branch.oracle.tokens = size  # no layer has as many keys of another kind
    with torch.no_grad():
        for step, given in enumerate(latents):
            for branch in branches:
                chosen = masks[step].view(1, size).expand(branch.rows, -1) if counts[step] < size else None
                call = (given.repeat(branch.rows, *[1] * (given.ndim - 1)), times[step].expand(branch.rows))
                plain.append(branch.call(model, *call))
                with branch.oracle.attention(chosen):
                    fresh = branch.call(model, *call)
                held = branch.oracle.held
                mixed = fresh if chosen is None else torch.where(spread(chosen[0]), fresh, held)
                branch.oracle.held = mixed
                expected.append(mixed)
        with tokenprune.apply(model, Planned(masks), schedule=Counts(counts)):
            for step, given in enumerate(latents):
                for branch in branches:
                    call = (given.repeat(branch.rows, *[1] * (given.ndim - 1)), times[step].expand(branch.rows))
                    actual.append(branch.call(model, *call))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=ATOL, rtol=0)
    for step, count in enumerate(counts):
        for place in range(step * len(branches), (step + 1) * len(branches)):
            same = torch.equal(actual[place], plain[place])
            assert same if count == size else not torch.allclose(actual[place], plain[place], atol=10 * ATOL)


def sd3_call(text: Tensor, pooled: Tensor, **more: Any) -> Call:
    def call(model: nn.Module, latents: Tensor, time: Tensor) -> Tensor:
        given = {"encoder_hidden_states": text, "pooled_projections": pooled, **more}
        return model(hidden_states=latents, timestep=time, return_dict=False, **given)[0]

    return call


def pixart_call(text: Tensor) -> Call:
    def call(model: nn.Module, latents: Tensor, time: Tensor) -> Tensor:
        extra = {"resolution": None, "aspect_ratio": None}
        given = {"encoder_hidden_states": text, "added_cond_kwargs": extra, "return_dict": False}
        return model(hidden_states=latents, timestep=time, **given)[0]

    return call


def hunyuan_call(rows: int) -> Call:
    inputs = TINY["hunyuan-dit"].inputs()
    given = {
        name: value.repeat(2, *[1] * (value.ndim - 1))[:rows] if isinstance(value, Tensor) else value
        for name, value in inputs.items()
        if name not in ("hidden_states", "timestep")
    }

    def call(model: nn.Module, latents: Tensor, time: Tensor) -> Tensor:
        return model(hidden_states=latents, timestep=time, return_dict=False, **given)[0]

    return call


def set_processor(model: nn.Module, processor: Any, layer: int = 0) -> None:
    blocks = model.transformer_blocks if hasattr(model, "transformer_blocks") else model.blocks
    attention = "attn" if hasattr(blocks[layer], "attn") else "attn1"
    getattr(blocks[layer], attention).set_processor(processor)


MODELS = {
    "sd3": (PAGJointAttnProcessor2_0, PAGCFGJointAttnProcessor2_0),
    "pixart": (PAGIdentitySelfAttnProcessor2_0, PAGCFGIdentitySelfAttnProcessor2_0),
    "hunyuan-dit": (PAGHunyuanAttnProcessor2_0, PAGCFGHunyuanAttnProcessor2_0),
}


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reuse", [None, Taylor(keys=False)], ids=["hold", "taylor"])
def test_processors_of_diffusers(name: str, parts: int, reuse: Any) -> None:
    """[cond, perturbed] or [uncond, cond, perturbed] in one call: one selection for all, which a layer splits."""
    if reuse is not None and name != "pixart":
        pytest.skip("one model is enough")
    model = TINY[name].make()
    processor = MODELS[name][parts - 2]()
    set_processor(model, processor)
    call = {
        "sd3": lambda: sd3_call(draw(parts, 5, 16, seed=1), draw(parts, 16, seed=2)),
        "pixart": lambda: pixart_call(draw(parts, 5, 16, seed=1)),
        "hunyuan-dit": lambda: hunyuan_call(parts),
    }[name]()
    latents = [draw(1, 4, 8, 8, seed=10 + step) for step in range(5)]
    if reuse is None:
        check(model, latents, [Branch(call, parts)], (16, 5, 1, 16, 7), pixels)
        return
    with tokenprune.apply(model, tokenprune.NoisePolicy(0.4, 2), reuse=reuse) as handle, torch.no_grad():
        for step, given in enumerate(latents):
            call(model, given.repeat(parts, 1, 1, 1), torch.full((parts,), 900.0 - 100 * step))
        guidance = handle._masked.generation.guidance
    assert guidance == ("uncond-first" if parts == 2 else "uncond-cond-perturbed")


@pytest.mark.parametrize("guidance", [None, "uncond-cond-perturbed"], ids=["found", "told"])
def test_two_images_share_nothing_but_their_parts(guidance: Guidance | None) -> None:
    """Each image of a batch of two with three parts gets what it gets alone."""
    model = TINY["pixart"].make()
    set_processor(model, PAGCFGIdentitySelfAttnProcessor2_0())
    text = draw(6, 5, 16, seed=1)
    latents = [draw(2, 4, 8, 8, seed=10 + step) for step in range(5)]

    def generate(images: slice) -> Tensor:
        found = []
        call = pixart_call(text.view(3, 2, 5, 16)[:, images].flatten(0, 1))
        with tokenprune.apply(model, tokenprune.NoisePolicy(0.4, 2), guidance=guidance), torch.no_grad():
            for step, given in enumerate(latents):
                rows = given[images].repeat(3, 1, 1, 1)
                out = call(model, rows, torch.full((len(rows),), 900.0 - 100 * step))
                found.append(out.unflatten(0, (3, -1)))
        return torch.stack(found)

    both = generate(slice(0, 2))
    for image in range(2):
        torch.testing.assert_close(both[:, :, image : image + 1], generate(slice(image, image + 1)))


@contextmanager
def skipping(model: nn.Module, **config: Any) -> Iterator[None]:
    """What a guider of diffusers does around its third call of the model in a step."""
    _apply_layer_skip_hook(model, LayerSkipConfig(**config), name="SkipLayerGuidance_0")
    try:
        yield
    finally:
        HookRegistry.check_if_exists_or_initialize(model).remove_hook("SkipLayerGuidance_0", recurse=True)


GUIDERS: dict[str, dict[str, Any]] = {
    "perturbed attention": {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False},
    "skip layer": {},
    "skip attention": {"skip_ff": False},
}


@pytest.mark.parametrize(("name", "guider"), [*(("pixart", guider) for guider in GUIDERS), ("wan", "skip layer")])
def test_guiders_of_diffusers(name: str, guider: str) -> None:
    """A third call of the step, with hooks that leave out a layer's attention, or all of the layer."""
    model = TINY[name].make()
    cond, size = pixart_call(draw(1, 5, 16, seed=1)), (4, 8, 8)
    if name == "wan":
        rest, size = {key: value[:1] for key, value in TINY["wan"].inputs().items()}, (4, 1, 8, 8)

        def cond(model: nn.Module, latents: Tensor, time: Tensor) -> Tensor:
            return model(**{**rest, "hidden_states": latents, "timestep": time}, return_dict=False)[0]

    latents = [draw(1, *size, seed=step) for step in range(5)]

    def without(model: nn.Module, latents: Tensor, time: Tensor) -> Tensor:
        with skipping(model, indices=[0], **GUIDERS[guider]):
            return cond(model, latents, time)

    check(model, latents, [Branch(cond), Branch(without)], (16, 5, 3, 16, 7), pixels)


def ltx2() -> LTX2VideoTransformer3DModel:
    config = {**TINY["ltx2"].config, "perturbed_attn": True}
    case = type(TINY["ltx2"])(**{**vars(TINY["ltx2"]), "config": config})
    return case.make()


def ltx2_call(rows: int = 1, **more: Any) -> Call:
    given = TINY["ltx2"].inputs()
    rest = {key: value[:rows] if isinstance(value, Tensor) else value for key, value in given.items()}

    def call(model: nn.Module, latents: Tensor, time: Tensor) -> Tensor:
        return model(**{**rest, "hidden_states": latents, "timestep": time}, return_dict=False, **more)[0]

    return call


def test_spatio_temporal_guidance_of_ltx2() -> None:
    """A call for it follows in each step: in a block its attention gives the values, in other modules it attends.

    And one in which picture and sound do not look at each other.
    """
    model = ltx2()
    others = ({"spatio_temporal_guidance_blocks": [0]}, {"isolate_modalities": True})
    branches = [Branch(ltx2_call()), *(Branch(ltx2_call(**other)) for other in others)]
    check(model, [draw(1, 24, 4, seed=step) for step in range(5)], branches, (24, 9, 3, 24, 5), tokens)


def test_reports() -> None:
    """Operations are counted branch by branch, of one without attention and of rows without attention, too."""
    times, model = torch.linspace(900, 100, 3), ltx2()
    calls = (ltx2_call(rows=2), ltx2_call(spatio_temporal_guidance_blocks=[0]))
    with tokenprune.apply(model, tokenprune.NoisePolicy(0.4, 1)) as handle, torch.no_grad():
        for step in range(3):
            for rows, call in zip((2, 1), calls, strict=True):
                call(model, draw(1, 24, 4, seed=step).repeat(rows, 1, 1), times[step].expand(rows))
        report = handle.report()
    assert report.macs.total < report.dense_macs.total
    model, call = TINY["pixart"].make(), pixart_call(draw(3, 5, 16, seed=1))
    set_processor(model, PAGCFGIdentitySelfAttnProcessor2_0())
    with tokenprune.apply(model, tokenprune.NoisePolicy(0.4, 1)) as handle, torch.no_grad():
        for step in range(3):
            call(model, draw(1, 4, 8, 8, seed=step).repeat(3, 1, 1, 1), times[step].expand(3))
        report = handle.report()
    assert report.macs.total < report.dense_macs.total


# Pipelines ----------------------------------------------------------------------------------------------------------


def sd3_pag() -> DiffusionPipeline:
    """The layer without attention is one without a second attention, as this pipeline knows none."""
    pipe = make_sd3()
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    parts.pop("feature_extractor", None)
    return StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["transformer_blocks.1"])


def pixart_pag() -> DiffusionPipeline:
    return PixArtSigmaPAGPipeline(**make_pixart().components, pag_applied_layers=["transformer_blocks.1"])


@pytest.mark.parametrize("make", [sd3_pag, pixart_pag])
@pytest.mark.parametrize("scale", [4.0, 1.0], ids=["guided", "alone"])
@pytest.mark.parametrize("policy", [CATPolicy(0.3, 3, num_clusters=5), AttentionRankPolicy(0.3, 3)], ids=["cat", "edm"])
def test_pipelines(make: Callable[[], DiffusionPipeline], scale: float, policy: Any) -> None:
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    wanted: dict[str, Any] = {"max_sequence_length": 1}
    if isinstance(pipe, PixArtSigmaPAGPipeline):
        wanted = {"max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False}

    def generate() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        sizes = {"height": 32, "width": 32, "num_inference_steps": 6, "output_type": "latent"}
        return pipe("a red circle", guidance_scale=scale, pag_scale=3.0, generator=generator, **sizes, **wanted).images

    plain = generate()
    with tokenprune.apply(pipe, type(policy)(1.0, 1)):
        assert torch.equal(generate(), plain)
    with tokenprune.apply(pipe, policy) as handle:
        pruned = generate()
        assert [step.tokens < step.num_tokens for step in handle.report().steps] == [False] * 3 + [True] * 3
        assert handle._masked.generation.view.images == 1
        assert torch.equal(generate(), pruned)
    assert not torch.allclose(pruned, plain)
    assert torch.equal(generate(), plain)
