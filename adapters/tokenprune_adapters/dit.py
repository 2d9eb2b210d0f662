"""DiT, and the patched form of Transformer2DModel: an image in blocks of self-attention, text or classes beside it."""

from __future__ import annotations

from diffusers import DiTTransformer2DModel, Transformer2DModel

from tokenprune import AttentionSite, ModuleMap, UnsupportedModelError, latent_grid
from tokenprune_adapters.common import paths, text_keys


def dit(model: DiTTransformer2DModel) -> ModuleMap:
    """Classes instead of text, the conditional half first; square images only, as the model itself asks."""
    blocks = paths(model, "transformer_blocks")
    return ModuleMap(
        blocks=blocks,
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out_2",
        grid=latent_grid("hidden_states", model.config.patch_size),
        text=None,
        noise_channels=model.config.in_channels,
        output_channels=model.out_channels,
        guidance="cond-first",
    )


def patched(model: Transformer2DModel) -> ModuleMap:
    """Transformer2DModel with patches, as in the first PixArt; its other forms have no last projection of tokens."""
    if not model.is_input_patches:
        raise UnsupportedModelError(
            "Transformer2DModel: only its form with patches (patch_size in the config) can be pruned; the others go "
            "back to a picture before the last projection and mix tokens in convolutions"
        )
    blocks = paths(model, "transformer_blocks")
    cross = [path for path in blocks if getattr(model.get_submodule(path), "attn2", None) is not None]
    return ModuleMap(
        blocks=blocks,
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out" if model.config.norm_type == "ada_norm_single" else "proj_out_2",
        grid=latent_grid("hidden_states", model.config.patch_size),
        constants=text_keys(cross),
        noise_channels=model.config.in_channels,
        output_channels=model.out_channels,
    )
