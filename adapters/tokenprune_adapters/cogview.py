"""CogView3-Plus, CogView4 and GLM-Image."""

from __future__ import annotations

from diffusers import CogView3PlusTransformer2DModel, CogView4Transformer2DModel, GlmImageTransformer2DModel

from tokenprune import Arguments, AttentionSite, ModuleMap, TokenGrid, UnsupportedCallError, latent_grid
from tokenprune_adapters.common import TEXT, paths, rotary, sites


def plus(model: CogView3PlusTransformer2DModel) -> ModuleMap:
    """Joint attention over [text, image]; positions are added where tokens are embedded."""
    blocks = paths(model, "transformer_blocks")
    return ModuleMap(
        blocks=blocks,
        attentions=tuple(AttentionSite(f"{path}.attn1", "text-image") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", model.config.patch_size),
        token_inputs=(TEXT,),
    )


def with_rotary(model: CogView4Transformer2DModel | GlmImageTransformer2DModel) -> ModuleMap:
    """Joint attention over [text, image], with rotary embeddings of the image tokens."""
    blocks = paths(model, "transformer_blocks")
    latents = latent_grid("hidden_states", model.config.patch_size)

    def grid(arguments: Arguments) -> TokenGrid:
        caches = arguments.get("kv_caches")  # of GLM-Image; its pipeline gives them without a mode to draw from texts
        if caches is not None and caches[0].mode is not None:
            raise UnsupportedCallError(
                f"{type(model).__name__}: kv_caches: expected none in use, got mode {caches[0].mode!r}: keys and "
                f"values of pictures to edit come from calls that are no steps of a generation, and pruned ones would "
                f"fill them with old values. remove() the handle to edit pictures"
            )
        return latents(arguments)

    return ModuleMap(
        blocks=sites(blocks, "hidden_states", rotary()),
        attentions=tuple(AttentionSite(f"{path}.attn1", "text-image") for path in blocks),
        exit="proj_out",
        grid=grid,
        token_inputs=(TEXT,) if isinstance(model, GlmImageTransformer2DModel) else (),
        shared=True,
        reads_values=isinstance(model, GlmImageTransformer2DModel),
    )
