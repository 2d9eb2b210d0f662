"""Qwen-Image, its edit models, and Qwen-Image 2.1."""

from __future__ import annotations

import torch
from diffusers import QwenImage21Transformer2DModel, QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21FlexAttnProcessor
from torch import Tensor

from tokenprune import (
    Arguments,
    AttentionSite,
    BlockSite,
    ExitSite,
    ModuleMap,
    TokenArgument,
    TokenGrid,
    UnsupportedModelError,
    num_tokens,
)
from tokenprune_adapters.common import TEXT, after, frames_or_picture, paths, sites

SLOT = 4
"""Tokens for each place that Qwen-Image 2.1's text encoder keeps for a picture."""


def _grid(arguments: Arguments, picture: int = 0) -> TokenGrid:
    """Extents of one of an image's pictures, the first if not said otherwise; the others are references."""
    first = arguments["img_shapes"][0]
    return frames_or_picture(*(first[picture] if isinstance(first, list) else first))


def _last(arguments: Arguments) -> TokenGrid:
    return _grid(arguments, -1)


def _before(arguments: Arguments) -> Tensor:
    """How many tokens of text and pictures to edit lie before the picture to draw."""
    mask = arguments["img_mask"]
    length = torch.where(mask[0], SLOT, 1).sum()
    return (length - num_tokens(_last(arguments))).expand(len(arguments["hidden_states"]))


def module_map(model: QwenImageTransformer2DModel) -> ModuleMap:
    """Joint attention over [text, image]; reference pictures follow the image and are computed at full steps only."""
    blocks = paths(model, "transformer_blocks")
    of_image = TokenArgument("image_rotary_emb", dim=0, batch=None, item=0)
    of_text = TokenArgument("image_rotary_emb", "text", 0, None, item=1)
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", of_image, "modulate_index", TEXT, of_text),
        attentions=tuple(AttentionSite(f"{path}.attn", "text-image") for path in blocks),
        exit="proj_out",
        grid=_grid,
        token_inputs=("controlnet_block_samples",),
        references=after("hidden_states", _grid),
        shared=True,
    )


def two_one(model: QwenImage21Transformer2DModel) -> ModuleMap:
    """One sequence [text and pictures to edit, image], in which the former sees nothing of the image.

    Its keys and values may come out of a cache of the model's own; blocks then get the image alone.
    """
    blocks = paths(model, "transformer_blocks")
    if any(isinstance(block.attn.processor, QwenImage21FlexAttnProcessor) for block in model.transformer_blocks):
        raise UnsupportedModelError(
            f"{type(model).__name__}: QwenImage21FlexAttnProcessor attends with masks made for blocks of the whole "
            f"sequence; expected the model's default, which attends to its parts one by one: "
            f"model.set_attn_processor(QwenImage21AttnProcessor())"
        )

    def either(name: str, dim: int, batch: int | None) -> tuple[TokenArgument, ...]:
        return TokenArgument(name, "text-image", dim, batch), TokenArgument(name, "image", dim, batch)

    places = (*either("rotary_emb", 0, None), *either("target_token_mask", 0, None))
    first, *rest = blocks
    return ModuleMap(
        blocks=(
            BlockSite(first, (*either("hidden_states", 1, 0), *places)),
            *(BlockSite(path, places) for path in rest),
            BlockSite("norm_out", either("target_token_mask", 0, None)),
        ),
        attentions=tuple(AttentionSite(f"{path}.attn", "text-image") for path in blocks),
        exit=ExitSite("proj_out", "text-image"),
        grid=_last,
        text_lengths=_before,
        shared=True,
        reads_values=True,
    )
