"""Image prompts: an attention module then attends twice, in SD3 to the image tokens once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, IPAdapterTimeImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch import Tensor, nn

import tokenprune
from tokenprune import AttentionError, CATPolicy
from tokenprune.registry import find_adapter
from tokenprune.testing import AdapterCheckError, check_adapter

HIDDEN, EMBED, QUERIES = 64, 16, 5
PROMPT = torch.randn(2, 3, EMBED, generator=torch.Generator().manual_seed(2))


def fill(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def weights(pipe: StableDiffusion3Pipeline) -> dict[str, dict[str, Tensor]]:
    """A file's contents, by the names that diffusers expects."""
    config = pipe.transformer.config
    width = config.attention_head_dim * config.num_attention_heads
    sizes = {"embed_dim": EMBED, "output_dim": width, "hidden_dim": HIDDEN, "heads": 1, "num_queries": QUERIES}
    projection = fill(IPAdapterTimeImageProjection(**sizes, timestep_in_dim=8))
    attention: dict[str, Tensor] = {}
    for i in range(len(pipe.transformer.attn_processors)):
        layer = fill(SD3IPAdapterJointAttnProcessor2_0(width, width, config.attention_head_dim, HIDDEN))
        attention.update({f"{i}.{name}": tensor for name, tensor in layer.state_dict().items()})
    return {"image_proj": projection.state_dict(), "ip_adapter": attention}


def load(pipe: StableDiffusion3Pipeline, scale: float = 1.0) -> None:
    pipe.load_ip_adapter(weights(pipe), image_encoder_folder=None)
    pipe.set_ip_adapter_scale(scale)


def test_loaded_and_unloaded_while_applied(
    sd3: StableDiffusion3Pipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    prompt = {"ip_adapter_image_embeds": PROMPT}
    with tokenprune.apply(sd3, guest_policy) as handle:
        without = draw(sd3)
        load(sd3)
        pruned = draw(sd3, **prompt)
        report = handle.report()
        assert report.macs.total < report.dense_macs.total
    plain = draw(sd3, **prompt)
    with tokenprune.apply(sd3, guest_policy):
        assert torch.equal(draw(sd3, **prompt), pruned)
    with tokenprune.apply(sd3, CATPolicy(alpha=1.0, warmup_steps=1)):
        assert torch.equal(draw(sd3, **prompt), plain)
        sd3.set_ip_adapter_scale(0.0)
        unscaled = draw(sd3, **prompt)
    assert not torch.allclose(pruned, without)
    assert not torch.allclose(unscaled, plain)
    with tokenprune.apply(sd3, guest_policy):
        sd3.unload_ip_adapter()
        assert torch.equal(draw(sd3), without)


@pytest.mark.parametrize("kept", [True, False])
def test_image_keys_of_the_second_attention_are_kept(sd3: StableDiffusion3Pipeline, kept: bool) -> None:
    """A pruned step's image prompt works on all image keys; a map without `further` is refused at the first step."""
    load(sd3)
    generator = torch.Generator().manual_seed(0)
    width = sd3.transformer.config.joint_attention_dim
    inputs = {
        "hidden_states": torch.randn(2, 4, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, width, generator=generator),
        "pooled_projections": torch.randn(2, width, generator=generator),
        "timestep": torch.tensor([500.0, 500.0]),
        "joint_attention_kwargs": {"ip_adapter_image_embeds": PROMPT},
    }

    def adapter(model: nn.Module) -> tokenprune.ModuleMap:
        found = find_adapter(model)(model)
        sites = found.attentions if kept else tuple(replace(site, further=None) for site in found.attentions)
        return replace(found, attentions=sites)

    if kept:
        check_adapter(lambda: sd3.transformer, inputs, adapter=adapter)
    else:
        message = r"breaks 'full': step 0 .* transformer_blocks\.0\.attn2: .* `further` of attention call 2"
        with pytest.raises(AdapterCheckError, match=message):
            check_adapter(lambda: sd3.transformer, inputs, adapter=adapter)


def test_switched_on_at_a_pruned_step(
    sd3: StableDiffusion3Pipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    load(sd3, 0.0)

    def switch(pipe: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            pipe.set_ip_adapter_scale(1.0)
        return values

    prompt = {"ip_adapter_image_embeds": PROMPT}
    with tokenprune.apply(sd3, guest_policy):
        with pytest.raises(AttentionError, match=r"transformer_blocks\.0\.attn: .* since the last full step"):
            draw(sd3, callback_on_step_end=switch, **prompt)
        after = draw(sd3, **prompt)
    with tokenprune.apply(sd3, guest_policy):
        assert torch.equal(draw(sd3, **prompt), after)


def test_flux() -> None:
    """The second attention sees the image prompt only and passes unchanged."""
    flux = next(model for model in tiny.IMAGES if model.name == "flux")

    def make() -> nn.Module:
        model = flux.make()
        width = model.config.num_attention_heads * model.config.attention_head_dim
        processors = dict(model.attn_processors)
        for name in processors:
            if not name.startswith("single"):
                processors[name] = fill(FluxIPAdapterAttnProcessor(width, tiny.TEXT, num_tokens=(4,), scale=[1.0]))
        model.set_attn_processor(processors)
        projection = ImageProjection(image_embed_dim=6, cross_attention_dim=tiny.TEXT, num_image_text_embeds=4)
        model.encoder_hid_proj = fill(MultiIPAdapterImageProjection([projection]))
        return model.eval()

    embeds = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(3))
    inputs = flux.inputs()
    inputs["joint_attention_kwargs"] = {"ip_adapter_image_embeds": [embeds]}
    with torch.no_grad():
        assert not torch.allclose(make()(**inputs).sample, flux.make()(**flux.inputs()).sample)
    check_adapter(make, inputs)
