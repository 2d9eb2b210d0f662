"""Attention masks of pruned calls, made to fit queries of computed tokens and keys of all."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.engine.attention_state import AttentionState, ImageTokens, KeptKeys
from tokenprune.errors import AttentionError


def between_tokens(mask: Tensor | None, images: ImageTokens, length: int) -> Tensor | None:
    """What a mask over all tokens has for an image token and another one [b, h, 1]; None where it has no such place.

    Args:
        mask: of a full call [b, h, l, L] or less.
        images: where image tokens lie.
        length: L.
    """
    if mask is None or mask.ndim < 2 or mask.shape[-2:] != (length, length) or images.count < 2:
        return None
    first = images.first(length)
    return mask[(None,) * (4 - mask.ndim)][:, :, first, first + 1].unsqueeze(-1)


def fit_mask(state: AttentionState, kept: KeptKeys, mask: Tensor, queries: int, between: Tensor | None) -> Tensor:
    """A mask for the fresh queries and all L keys, from one made for all tokens or from one made for the fresh ones.

    In a mask made for the fresh ones, image tokens all have the same column, but for what each has for itself
    (perturbed guidance lets it see no other). So the columns that it lacks are those of the first image token that it
    has, and in that one's own row what a full call had there `between` two tokens. It has a column for each text
    token, also where those are not computed.

    Raises:
        AttentionError: the mask fits neither.
    """
    if kept.fresh is None or kept.columns is None:
        raise RuntimeError(f"{state.site.path}: nothing was prepared for its mask")
    images, fresh, given = kept.images, kept.fresh.selection, kept.columns
    length = fresh.num_tokens
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.shape[-2] == length != queries:
        mask = torch.take_along_dim(mask, fresh.index[:, None, :, None], dim=-2)
    if mask.shape[-1] == given.count != length:
        image = min(images.first(length), given.count - 1)
        places = torch.arange(given.count, device=mask.device).expand_as(given.index)
        columns = torch.full_like(given.index[:, :1], image).expand(-1, length).scatter(1, given.index, places)
        square = mask.shape[-2] == given.count
        mask = torch.take_along_dim(mask, columns[:, None, None, :], dim=-1)
        if square and between is not None:
            missing = torch.ones_like(columns, dtype=torch.bool).scatter(1, given.index, False)
            own = torch.where(missing[:, None], between.to(mask.dtype), mask[:, :, image])
            mask = mask.slice_scatter(own.unsqueeze(2), dim=2, start=image, end=image + 1)
    if mask.shape[-1] not in (1, length) or mask.shape[-2] not in (1, queries):
        raise AttentionError(
            f"{state.site.path}: expected a mask over all {length} keys, or over {given.count} of the fresh ones and "
            f"the text, for {queries} queries, got {list(mask.shape)}"
        )
    return mask
