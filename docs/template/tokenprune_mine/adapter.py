"""Where things are in my transformer."""

from __future__ import annotations

from tokenprune import AttentionSite, ModuleMap, latent_grid
from tokenprune_mine.model import MyTransformer


def module_map(model: MyTransformer) -> ModuleMap:
    """Its map; `tokenprune inspect tokenprune_mine.model:example --code` writes one for a model that has none yet."""
    blocks = tuple(f"blocks.{i}" for i in range(len(model.blocks)))
    return ModuleMap(
        blocks=blocks,
        attentions=tuple(AttentionSite(f"{path}.attn") for path in blocks),
        exit="final",
        grid=latent_grid("latents", 2),
        hidden="x",
        latents="latents",
        time="t",
        text=None,
    )
