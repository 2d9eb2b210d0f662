"""ERNIE-Image."""

from __future__ import annotations

from diffusers import ErnieImageTransformer2DModel

from tokenprune import AttentionSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, sites


def module_map(model: ErnieImageTransformer2DModel) -> ModuleMap:
    """One sequence [image, text], its tokens in the first dimension and the batch in the second."""
    blocks = paths(model, "layers")
    states = TokenArgument("x", "image-text", dim=0, batch=1)
    modulation = TokenArgument("temb", "image-text", dim=0, batch=1)
    return ModuleMap(
        blocks=sites(blocks, states, modulation, TokenArgument("rotary_pos_emb", "image-text")),
        attentions=tuple(AttentionSite(f"{path}.self_attention", "image-text") for path in blocks),
        exit=ExitSite("final_linear", "image-text", dim=0, batch=1),
        grid=latent_grid("hidden_states", model.config.patch_size),
        text="text_bth",
        reads_values=True,
    )
