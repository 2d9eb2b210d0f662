"""Ideogram 4."""

from __future__ import annotations

from diffusers import Ideogram4Transformer2DModel
from diffusers.models.transformers.transformer_ideogram4 import OUTPUT_IMAGE_INDICATOR
from torch import Tensor

from tokenprune import Arguments, AttentionSite, BlockSite, ExitSite, ModuleMap, TokenArgument, TokenGrid
from tokenprune_adapters.common import paths, rectangle, sites


def _grid(arguments: Arguments) -> TokenGrid:
    """The positions of the tokens that are said to be the picture's, which come last."""
    picture = arguments["indicator"][0] == OUTPUT_IMAGE_INDICATOR
    return rectangle(arguments["position_ids"][0][picture])


def _latents(arguments: Arguments) -> Tensor:
    """Those of the picture, which follow what is 0 for the text."""
    text = int((arguments["indicator"][0] != OUTPUT_IMAGE_INDICATOR).sum())
    latents: Tensor = arguments["hidden_states"][:, text:]
    return latents


def module_map(model: Ideogram4Transformer2DModel) -> ModuleMap:
    """One sequence [text, image], up to the output; the pipeline's unconditional transformer gets the image alone."""
    blocks = paths(model, "layers")
    tokens = tuple(
        TokenArgument(name, "text-image", ndim=ndim)
        for name, ndim in (("hidden_states", 0), ("image_rotary_emb", 0), ("adaln_input", 3))
    )
    return ModuleMap(
        blocks=(
            *sites(blocks, *tokens),
            BlockSite("final_layer", (TokenArgument("conditioning", "text-image", ndim=3),)),
        ),
        attentions=tuple(AttentionSite(f"{path}.attention", "text-image") for path in blocks),
        exit=ExitSite("final_layer", "text-image"),
        grid=_grid,
        image_latents=_latents,
        time_rises=True,
        reads_values=True,
    )
