"""Kandinsky 5."""

from __future__ import annotations

from diffusers import Kandinsky5Transformer3DModel

from tokenprune import Arguments, AttentionSite, ExitSite, ModuleMap, TokenGrid, UnsupportedModelError, latent_grid
from tokenprune_adapters.common import paths, sites


def module_map(model: Kandinsky5Transformer3DModel) -> ModuleMap:
    """Self-attention over the video; the channels of the latents come last."""
    if model.config.attention_type != "regular":
        raise UnsupportedModelError(
            f"Kandinsky5Transformer3DModel: attention_type {model.config.attention_type!r} attends in tiles of 64 "
            f"tokens through flex attention, chosen from all tokens anew at each step; only 'regular' can be pruned"
        )

    def grid(arguments: Arguments) -> TokenGrid:
        patch = tuple(model.config.patch_size)
        return latent_grid("latents", patch)({"latents": arguments["hidden_states"][..., 0]})

    blocks = paths(model, "visual_transformer_blocks")
    return ModuleMap(
        blocks=sites(blocks, "visual_embed", "rope"),
        attentions=tuple(AttentionSite(f"{path}.self_attention") for path in blocks),
        exit=ExitSite("out_layer.out_layer", expand=blocks[-1]),
        grid=grid,
    )
