"""ControlNet: its residuals have a row for each token and are gathered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from diffusers import (
    FluxControlNetModel,
    SD3ControlNetModel,
    SD3MultiControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, ModuleMap
from tokenprune.registry import find_adapter
from tokenprune.testing import AdapterCheckError, check_adapter

CONTROL = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def fill(model: nn.Module, seed: int = 1) -> nn.Module:
    """Random values for all parameters: the layers that hand residuals over start as zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def without_residuals(model: nn.Module) -> ModuleMap:
    found = find_adapter(model)(model)
    return replace(found, token_inputs=tuple(given for given in found.token_inputs if "controlnet" not in str(given)))


def make_controlnet(pipe: StableDiffusion3Pipeline, layers: int, seed: int = 1) -> SD3ControlNetModel:
    config = pipe.transformer.config
    names = ("sample_size", "patch_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads")
    names += ("joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size")
    return fill(SD3ControlNetModel(num_layers=layers, **{name: config[name] for name in names}), seed)


@pytest.fixture(params=["one", "two"])
def controlled(request: pytest.FixtureRequest, sd3: StableDiffusion3Pipeline) -> StableDiffusion3ControlNetPipeline:
    nets = [make_controlnet(sd3, layers=3, seed=seed) for seed in (1, 2)]
    net = nets[0] if request.param == "one" else SD3MultiControlNetModel(nets)
    pipe = StableDiffusion3ControlNetPipeline(**sd3.components, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def options(pipe: StableDiffusion3ControlNetPipeline, scale: float = 1.0) -> dict[str, Any]:
    several = isinstance(pipe.controlnet, SD3MultiControlNetModel)
    return {
        "control_image": [CONTROL, 1 - CONTROL] if several else CONTROL,
        "controlnet_conditioning_scale": [scale, scale] if several else scale,
    }


def test_sd3(
    controlled: StableDiffusion3ControlNetPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    plain = draw(controlled, **options(controlled))
    seen: list[int] = []
    layer = controlled.transformer.transformer_blocks[1].ff
    with layer.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[1])):
        with tokenprune.apply(controlled, CATPolicy(alpha=1.0, warmup_steps=1)):
            assert torch.equal(draw(controlled, **options(controlled)), plain)
        seen.clear()
        with tokenprune.apply(controlled, guest_policy):
            pruned = draw(controlled, **options(controlled))
            weaker = draw(controlled, **options(controlled, 0.1))
    assert seen == 2 * ([64] * 3 + [19] * 3)
    assert not torch.equal(pruned, plain)
    assert not torch.allclose(pruned, weaker)
    assert torch.equal(draw(controlled, **options(controlled)), plain)


@pytest.mark.parametrize("gathered", [True, False])
def test_sd3_pruned_steps_are_those_of_the_plain_model(
    controlled: StableDiffusion3ControlNetPipeline, draw: Callable[..., Tensor], gathered: bool
) -> None:
    """The residuals of a real call; a map that does not gather them is found out."""
    model, calls = controlled.transformer, []
    with model.register_forward_pre_hook(lambda _module, _args, kwargs: calls.append(kwargs), with_kwargs=True):
        draw(controlled, **options(controlled))
    inputs = {**calls[0], "return_dict": True}
    assert [len(residual) for residual in inputs["block_controlnet_hidden_states"]] == [2, 2, 2]

    if gathered:
        check_adapter(lambda: model, inputs)
    else:
        with pytest.raises(AdapterCheckError, match="breaks 'pruned'"):
            check_adapter(lambda: model, inputs, adapter=without_residuals)


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
def test_flux() -> None:
    """Residuals for both kinds of blocks, from a real ControlNet."""
    flux = next(model for model in tiny.IMAGES if model.name == "flux")
    inputs = {key: value for key, value in flux.inputs().items() if key != "controlnet_block_samples"}
    net = fill(FluxControlNetModel(**{**flux.config, "num_layers": 1, "num_single_layers": 1}))
    with torch.no_grad():
        samples, single = net(controlnet_cond=tiny.noise(2, 24, 4, seed=7), return_dict=False, **inputs)
    residuals = {"controlnet_block_samples": samples, "controlnet_single_block_samples": single}
    assert [residual.shape[1] for each in residuals.values() for residual in each] == [24, 24]
    check_adapter(flux.make, inputs | residuals)
    with pytest.raises(AdapterCheckError, match="breaks 'pruned'"):
        check_adapter(flux.make, inputs | residuals, adapter=without_residuals)
