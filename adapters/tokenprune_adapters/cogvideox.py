"""CogVideoX, ConsisID, which is built on it, and EasyAnimate."""

from __future__ import annotations

from diffusers import CogVideoXTransformer3DModel, ConsisIDTransformer3DModel, EasyAnimateTransformer3DModel

from tokenprune import AttentionSite, ModuleMap, latent_grid
from tokenprune_adapters.common import TEXT, frames_first, paths, rotary, sites


def cogvideox(model: CogVideoXTransformer3DModel | ConsisIDTransformer3DModel) -> ModuleMap:
    """Joint attention over [text, video]; frames come before channels in the latents [B, F, C, H, W].

    ConsisID's tokens look at a face between blocks, each by itself.
    """
    patch = model.config.patch_size
    sizes = (model.config.get("patch_size_t") or 1, patch, patch)
    embedded = model.config.use_rotary_positional_embeddings
    blocks = paths(model, "transformer_blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", *([rotary()] if embedded else [])),
        attentions=tuple(AttentionSite(f"{path}.attn1", "text-image") for path in blocks),
        exit="proj_out",
        grid=frames_first(sizes),
        token_inputs=(TEXT,) if embedded else (),
        shared=embedded,
    )


def easyanimate(model: EasyAnimateTransformer3DModel) -> ModuleMap:
    """Joint attention over [text, video]."""
    patch = model.config.patch_size
    blocks = paths(model, "transformer_blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", rotary()),
        attentions=tuple(AttentionSite(f"{path}.attn1", "text-image") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", (1, patch, patch)),
        token_inputs=(TEXT,),
        shared=True,
    )
