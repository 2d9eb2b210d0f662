"""AuraFlow."""

from __future__ import annotations

from diffusers import AuraFlowTransformer2DModel

from tokenprune import AttentionSite, BlockSite, ModuleMap, latent_grid
from tokenprune_adapters.common import paths


def module_map(model: AuraFlowTransformer2DModel) -> ModuleMap:
    """Joint attention over [text, image]; the later blocks get both in one sequence, then already reduced."""
    joint, single = paths(model, "joint_transformer_blocks"), paths(model, "single_transformer_blocks")
    return ModuleMap(
        blocks=(*joint, *(BlockSite(path) for path in single)),
        attentions=tuple(AttentionSite(f"{path}.attn", "text-image") for path in (*joint, *single)),
        exit="proj_out",
        grid=latent_grid("hidden_states", model.config.patch_size),
    )
