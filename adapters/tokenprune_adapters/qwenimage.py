"""Qwen-Image and its edit models."""

from __future__ import annotations

from diffusers import QwenImageTransformer2DModel

from tokenprune import Arguments, AttentionSite, ModuleMap, TokenArgument, TokenGrid
from tokenprune_adapters.common import after, paths, sites


def _grid(arguments: Arguments) -> TokenGrid:
    """Extents of the first of an image's pictures; the others are references."""
    first = arguments["img_shapes"][0]
    frames, height, width = first[0] if isinstance(first, list) else first
    return (height, width) if frames == 1 else (frames, height, width)


def module_map(model: QwenImageTransformer2DModel) -> ModuleMap:
    """Joint attention over [text, image]; reference pictures follow the image and are computed at full steps only."""
    blocks = paths(model, "transformer_blocks")
    rotary = TokenArgument("image_rotary_emb", dim=0, batch=None, item=0)
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", rotary, "modulate_index"),
        attentions=tuple(AttentionSite(f"{path}.attn", "text-image") for path in blocks),
        exit="proj_out",
        grid=_grid,
        token_inputs=("controlnet_block_samples",),
        references=after("hidden_states", _grid),
        shared=True,
    )
