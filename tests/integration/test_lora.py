"""LoRA: PEFT wraps linear layers in place, those included that carry hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from small import make_sd3
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, ModuleMapError
from tokenprune.testing import check_adapter

DENSE = CATPolicy(alpha=1.0, warmup_steps=1)
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "ff.net.2", "proj_out"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a random adapter for the small SD3, exit included."""
    folder = tmp_path_factory.mktemp("lora")
    transformer = make_sd3().transformer
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False))
    layers = get_peft_model_state_dict(transformer)
    assert any(name.startswith("proj_out") for name in layers)
    StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=layers)
    return folder


def test_loaded_and_unloaded_while_applied(
    sd3: StableDiffusion3Pipeline,
    weights: Path,
    draw: Callable[..., Tensor],
    guest_policy: CATPolicy,
    marks: Callable[[nn.Module], dict[str, Any]],
) -> None:
    before, exit_layer = marks(sd3.transformer), sd3.transformer.proj_out
    handle = tokenprune.apply(sd3, guest_policy)
    without = draw(sd3)
    sd3.load_lora_weights(weights)
    assert sd3.transformer.proj_out is not exit_layer
    loaded_while_applied = draw(sd3)
    assert [step.tokens for step in handle.report().steps] == [64] * 3 + [19] * 3
    handle.remove()
    plain = draw(sd3)
    with tokenprune.apply(sd3, guest_policy):
        assert torch.equal(draw(sd3), loaded_while_applied)
        sd3.unload_lora_weights()
        assert sd3.transformer.proj_out is exit_layer
        assert torch.equal(draw(sd3), without)
    assert not torch.allclose(loaded_while_applied, without)
    assert not torch.equal(loaded_while_applied, plain)
    after = marks(sd3.transformer)
    assert after.pop("")[0] in (before[""][0], sorted([*before.pop("")[0], "_hf_peft_config_loaded"]))
    assert after == before


def test_alpha_one_is_the_plain_model_with_the_adapter(
    sd3: StableDiffusion3Pipeline, weights: Path, draw: Callable[..., Tensor]
) -> None:
    with tokenprune.apply(sd3, DENSE):
        draw(sd3)
        sd3.load_lora_weights(weights)
        pruned = draw(sd3)
    assert torch.equal(pruned, draw(sd3))


@pytest.mark.parametrize("change", ["fuse", "scale", "off", "at the call"])
def test_changed_while_applied(
    sd3: StableDiffusion3Pipeline, weights: Path, change: str, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    sd3.load_lora_weights(weights, adapter_name="random")
    options: dict[str, Any] = {}
    with tokenprune.apply(sd3, guest_policy):
        first = draw(sd3)
        if change == "fuse":
            sd3.fuse_lora(lora_scale=0.5)
        elif change == "scale":
            sd3.set_adapters(["random"], [0.5])
        elif change == "off":
            sd3.disable_lora()
        else:
            options = {"joint_attention_kwargs": {"scale": 0.5}}
        changed = draw(sd3, **options)
    with tokenprune.apply(sd3, guest_policy):
        assert torch.equal(draw(sd3, **options), changed)
    assert not torch.allclose(first, changed)


def test_loaded_in_mid_generation(
    sd3: StableDiffusion3Pipeline, weights: Path, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    """The step after it is a full one, as caches of the model without the adapter are of no use."""

    def load(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            pipe.load_lora_weights(weights)
        return values

    with tokenprune.apply(sd3, guest_policy) as handle:
        draw(sd3, callback_on_step_end=load)
        assert [step.tokens for step in handle.report().steps] == [64, 64]
        after = draw(sd3)
    with tokenprune.apply(sd3, guest_policy):
        assert torch.equal(draw(sd3), after)


def test_wrapped_text_layers_and_exit(pixart: DiffusionPipeline) -> None:
    """PixArt's cross-attention keys and values are kept while the text stays: those of the adapter, too."""
    model = pixart.transformer
    inject_adapter_in_model(
        LoraConfig(r=4, target_modules=["to_k", "to_v", "proj_out"], init_lora_weights=False), model
    )
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(2, 4, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 8, 32, generator=generator),
        "timestep": torch.tensor([500.0, 500.0]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    check_adapter(lambda: model, inputs)


def test_a_part_that_is_gone_is_named(
    sd3: StableDiffusion3Pipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    model = sd3.transformer
    last = model.transformer_blocks[-1]
    with tokenprune.apply(sd3, guest_policy):
        pruned = draw(sd3)
        model.transformer_blocks = model.transformer_blocks[:-1]
        for _ in range(2):
            with pytest.raises(
                ModuleMapError, match=r"no module named transformer_blocks\.2, transformer_blocks\.2\.at"
            ):
                draw(sd3)
        model.transformer_blocks.append(last)
        assert torch.equal(draw(sd3), pruned)
