"""Kandinsky 5 and 6."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import Kandinsky5Transformer3DModel, Kandinsky6Transformer3DModel

from tokenprune import (
    Arguments,
    AttentionSite,
    ExitSite,
    ModuleMap,
    TokenArgument,
    TokenGrid,
    UnsupportedModelError,
    latent_grid,
)
from tokenprune_adapters.common import paths, sites


def _channels_last(patch: tuple[int, ...]) -> Callable[[Arguments], TokenGrid]:
    """A grid reader for latents [B, F, h, w, C]."""

    def grid(arguments: Arguments) -> TokenGrid:
        return latent_grid("latents", patch)({"latents": arguments["hidden_states"][..., 0]})

    return grid


def five(model: Kandinsky5Transformer3DModel) -> ModuleMap:
    """Self-attention over the video; the channels of the latents come last."""
    if model.config.attention_type != "regular":
        raise UnsupportedModelError(
            f"Kandinsky5Transformer3DModel: attention_type {model.config.attention_type!r} attends in tiles of 64 "
            f"tokens through flex attention, chosen from all tokens anew at each step; only 'regular' can be pruned"
        )
    blocks = paths(model, "visual_transformer_blocks")
    return ModuleMap(
        blocks=sites(blocks, "visual_embed", "rope"),
        attentions=tuple(AttentionSite(f"{path}.self_attention") for path in blocks),
        exit=ExitSite("out_layer.out_layer", expand=blocks[-1]),
        grid=_channels_last(tuple(model.config.patch_size)),
    )


def six(model: Kandinsky6Transformer3DModel) -> ModuleMap:
    """Self-attention over the video, and attention of the sound to it; all of the sound is computed at every step."""
    blocks = paths(model, "visual_transformer_blocks")
    kinds = ("video_dec_block.self_attention", "av_cross_attention")
    return ModuleMap(
        blocks=sites(blocks, "vis", TokenArgument("vis_rope", dim=0, batch=None)),
        attentions=tuple(AttentionSite(f"{path}.{kind}") for path in blocks for kind in kinds),
        exit=ExitSite("out_layer.out_layer", expand=blocks[-1]),
        grid=_channels_last(tuple(model.config.patch_size)),
        shared=True,
    )
