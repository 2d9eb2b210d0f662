"""Motif-Video."""

from __future__ import annotations

from diffusers import MotifVideoTransformer3DModel

from tokenprune import AttentionSite, ModuleMap, latent_grid
from tokenprune_adapters.common import paths, rotary, sites


def module_map(model: MotifVideoTransformer3DModel) -> ModuleMap:
    """Joint attention over [video, text]; the last blocks have a second stream of the video in the text's place."""
    config = model.config
    blocks = paths(model, "transformer_blocks", "single_transformer_blocks")
    decoder = blocks[len(blocks) - config.num_decoder_layers :]
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", rotary()),
        attentions=tuple(
            AttentionSite(f"{path}.attn", "image-image" if path in decoder else "image-text") for path in blocks
        ),
        exit="proj_out",
        grid=latent_grid("hidden_states", (config.patch_size_t, config.patch_size, config.patch_size)),
        shared=True,
    )
