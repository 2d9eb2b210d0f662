"""Krea 2."""

from __future__ import annotations

from diffusers import Krea2Transformer2DModel

from tokenprune import AttentionSite, BlockSite, ModuleMap, TokenArgument
from tokenprune_adapters.common import after, grid_of_ids, paths


def module_map(model: Krea2Transformer2DModel) -> ModuleMap:
    """One sequence [text, image]; the image comes as tokens, so tokens are chosen before the model sees any."""
    blocks = paths(model, "transformer_blocks")
    grid = grid_of_ids("position_ids")
    return ModuleMap(
        blocks=tuple(BlockSite(path) for path in blocks),
        attentions=tuple(AttentionSite(f"{path}.attn", "text-image") for path in blocks),
        exit="final_layer",
        grid=grid,
        token_inputs=("hidden_states", TokenArgument("position_ids", "text-image", dim=0, batch=None)),
        references=after("hidden_states", grid),
        shared=True,
    )
