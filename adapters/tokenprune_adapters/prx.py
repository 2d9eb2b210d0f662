"""PRX."""

from __future__ import annotations

from diffusers import PRXTransformer2DModel

from tokenprune import AttentionSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, sites


def module_map(model: PRXTransformer2DModel) -> ModuleMap:
    """The image attends to [text, image]; the text itself stays as it is."""
    blocks = paths(model, "blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", TokenArgument("image_rotary_emb", dim=2)),
        attentions=tuple(AttentionSite(f"{path}.attention", "text-image") for path in blocks),
        exit="final_layer",
        grid=latent_grid("hidden_states", model.config.patch_size),
    )
