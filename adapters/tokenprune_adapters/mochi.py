"""Mochi 1."""

from __future__ import annotations

from diffusers import MochiTransformer3DModel

from tokenprune import AttentionSite, ModuleMap, latent_grid
from tokenprune_adapters.common import paths, rotary, sites


def module_map(model: MochiTransformer3DModel) -> ModuleMap:
    """Joint attention over [video, valid text], to each sample of the batch in a call of its own."""
    patch = model.config.patch_size
    blocks = paths(model, "transformer_blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", rotary()),
        attentions=tuple(AttentionSite(f"{path}.attn1", "image-text") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", (1, patch, patch)),
        shared=True,
        reads_values=True,
    )
