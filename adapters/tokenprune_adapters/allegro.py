"""Allegro."""

from __future__ import annotations

from diffusers import AllegroTransformer3DModel

from tokenprune import AttentionSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, sites, text_keys


def module_map(model: AllegroTransformer3DModel) -> ModuleMap:
    """Self-attention over the video; rotary embeddings are tables and the positions [1, N] of tokens in them.

    The blocks squeeze the dimension of tokens away where there is one token alone.
    """
    patch = model.config.patch_size
    blocks = paths(model, "transformer_blocks")
    positions, mask = TokenArgument("image_rotary_emb", item=1), TokenArgument("attention_mask", dim=2)
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", positions, mask),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", (model.config.patch_size_t, patch, patch)),
        constants=text_keys(blocks),
        least_tokens=2,
    )
