"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from diffusers import SD3Transformer2DModel

from tokenprune import AttentionSite, ModuleMap, latent_grid
from tokenprune_adapters.common import TEXT


def module_map(model: SD3Transformer2DModel) -> ModuleMap:
    """Joint attention over [image, text]; the dual layers of SD3.5 attend to the image a second time (attn2).

    With an IP-Adapter each module attends once more, to [image, image prompt].
    """
    blocks = [(f"transformer_blocks.{i}", block) for i, block in enumerate(model.transformer_blocks)]
    joint = [AttentionSite(f"{path}.attn", "image-text") for path, _ in blocks]
    dual = [
        AttentionSite(f"{path}.attn2", "image", further="image-text")
        for path, block in blocks
        if block.use_dual_attention
    ]
    return ModuleMap(
        blocks=tuple(path for path, _ in blocks),
        attentions=(*joint, *dual),
        exit="proj_out",
        grid=latent_grid("hidden_states", model.config.patch_size),
        token_inputs=("block_controlnet_hidden_states", TEXT),
    )
