"""CogVideoX and EasyAnimate."""

from __future__ import annotations

from diffusers import CogVideoXTransformer3DModel, EasyAnimateTransformer3DModel

from tokenprune import Arguments, AttentionSite, ModuleMap, TokenGrid, latent_grid
from tokenprune_adapters.common import paths, rotary, sites


def cogvideox(model: CogVideoXTransformer3DModel) -> ModuleMap:
    """Joint attention over [text, video]; frames come before channels in the latents [B, F, C, H, W]."""
    patch = model.config.patch_size
    sizes = (model.config.patch_size_t or 1, patch, patch)

    def grid(arguments: Arguments) -> TokenGrid:
        return latent_grid("latents", sizes)({"latents": arguments["hidden_states"][:, :, 0]})

    embedded = model.config.use_rotary_positional_embeddings
    blocks = paths(model, "transformer_blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", *([rotary()] if embedded else [])),
        attentions=tuple(AttentionSite(f"{path}.attn1", "text-image") for path in blocks),
        exit="proj_out",
        grid=grid,
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
        shared=True,
    )
