"""Classifier-free guidance: how its branches lie in a batch, and what it makes of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

GUIDANCE_SCALE = 5.0
"""A usual scale of classifier-free guidance, for what must be right after guidance and need not know the scale."""


Guidance = Literal["none", "uncond-first", "cond-first"]
"""How classifier-free guidance lies in the batch of one call."""


class BranchKey(NamedTuple):
    """A guidance branch.

    Attributes:
        order: its place among the calls of a step that share shape and name.
        shape: the shape of its latents.
        name: what the pipeline calls it (`cache_context` of diffusers); empty where it does not say.
    """

    order: int
    shape: tuple[int, ...]
    name: str = ""


def halves_agree(latents: Tensor) -> bool:
    """Whether the second half of a batch is the first once more, as under batched guidance; waits for the device."""
    first, *second = latents.chunk(2)
    return bool(second) and torch.equal(first, second[0])


def guided(batch: Tensor, guidance: Guidance, scale: float = GUIDANCE_SCALE) -> Tensor:
    """What guidance makes of a batch [G * B, ...]: uncond + scale (cond - uncond) [B, ...]."""
    if guidance == "none":
        return batch
    first, second = batch.chunk(2)
    uncond, cond = (first, second) if guidance == "uncond-first" else (second, first)
    return uncond + scale * (cond - uncond)
