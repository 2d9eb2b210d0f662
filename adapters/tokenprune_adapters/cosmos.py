"""Cosmos 1 and 2."""

from __future__ import annotations

from diffusers import CosmosTransformer3DModel

from tokenprune import AttentionSite, BlockSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, rotary, sites


def module_map(model: CosmosTransformer3DModel) -> ModuleMap:
    """Self-attention over the video; the timestep may be one for each frame, the modulation then one for each token."""
    blocks = paths(model, "transformer_blocks")
    modulation = tuple(TokenArgument(name, ndim=3) for name in ("embedded_timestep", "temb"))
    return ModuleMap(
        blocks=(
            *sites(blocks, "hidden_states", rotary(), "extra_pos_emb", "controlnet_residual", *modulation),
            BlockSite("norm_out", modulation),
        ),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", tuple(model.config.patch_size)),
        shared=True,
    )
