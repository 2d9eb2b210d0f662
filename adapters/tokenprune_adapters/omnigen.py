"""OmniGen."""

from __future__ import annotations

from diffusers import OmniGenTransformer2DModel

from tokenprune import AttentionSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, sites


def module_map(model: OmniGenTransformer2DModel) -> ModuleMap:
    """One sequence [condition, time, image]; the model cuts the last N tokens out of it before the last projection."""
    blocks = paths(model, "layers")
    embeddings = TokenArgument("image_rotary_emb", "text-image", dim=0, batch=None)
    return ModuleMap(
        blocks=sites(blocks, TokenArgument("hidden_states", "text-image"), embeddings),
        attentions=tuple(AttentionSite(f"{path}.self_attn", "text-image") for path in blocks),
        exit=ExitSite("proj_out", expand=blocks[-1], expand_layout="text-image"),
        grid=latent_grid("hidden_states", model.config.patch_size),
        time_rises=True,
        text="input_ids",
        shared=True,
        reads_values=True,
        guidance="cond-first",
    )
