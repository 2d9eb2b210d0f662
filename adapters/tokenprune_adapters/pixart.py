"""PixArt-alpha and PixArt-Sigma."""

from __future__ import annotations

from diffusers import PixArtTransformer2DModel

from tokenprune import AttentionSite, ModuleMap, latent_grid


def module_map(model: PixArtTransformer2DModel) -> ModuleMap:
    """Self-attention over the image; cross-attention keys and values depend on the text alone.

    Half of the output channels are a learned variance where `out_channels` is twice `in_channels`.
    """
    blocks = tuple(f"transformer_blocks.{i}" for i in range(len(model.transformer_blocks)))
    return ModuleMap(
        blocks=blocks,
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", model.config.patch_size),
        constants=tuple(f"{path}.attn2.{name}" for path in blocks for name in ("to_k", "to_v")),
        noise_channels=model.config.in_channels,
        output_channels=model.out_channels,
    )
