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


def count_images(latents: Tensor, guidance: Guidance | None) -> int:
    """B, how many images a batch of latents [G * B, ...] holds; None finds batched guidance by its equal halves."""
    guided = halves_agree(latents) if guidance is None else guidance != "none"
    return len(latents) // 2 if guided else len(latents)


def branches_of(batch: Tensor, guidance: Guidance) -> tuple[Tensor, Tensor | None]:
    """The conditional and the unconditional part [B, ...] of a batch [G * B, ...]; None where it has no such part."""
    if guidance == "none":
        return batch, None
    first, second = batch.chunk(2)
    return (second, first) if guidance == "uncond-first" else (first, second)


def combined(cond: Tensor, uncond: Tensor | None, scale: float) -> Tensor:
    """Uncond + scale (cond - uncond), the guided prediction; the conditional one where there is no other."""
    return cond if uncond is None else uncond + scale * (cond - uncond)


def guided(batch: Tensor, guidance: Guidance, scale: float = GUIDANCE_SCALE) -> Tensor:
    """What guidance makes of a batch [G * B, ...]: one prediction for each image [B, ...]."""
    return combined(*branches_of(batch, guidance), scale)
