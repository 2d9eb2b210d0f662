"""Classifier-free guidance: how its branches lie in a batch, and what it makes of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

GUIDANCE_SCALE = 5.0
"""A usual scale of classifier-free guidance, for what must be right after guidance and need not know the scale."""


Guidance = Literal["none", "uncond-first", "cond-first", "uncond-cond-perturbed"]
"""How classifier-free guidance lies in the batch of one call; with perturbed-attention guidance it has a third part."""


PARTS: dict[Guidance, int] = {"none": 1, "uncond-first": 2, "cond-first": 2, "uncond-cond-perturbed": 3}
"""G, how many parts of a batch [G * B, ...] guidance combines."""


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


def parts_agree(latents: Tensor, parts: int) -> bool:
    """Whether a batch is its first part several times, as under batched guidance; waits for the device."""
    if len(latents) % parts:
        return False
    first, *others = latents.chunk(parts)
    return len(others) == parts - 1 and all(torch.equal(first, other) for other in others)


def halves_agree(latents: Tensor) -> bool:
    """Whether the second half of a batch is the first once more, as under batched guidance; waits for the device."""
    return parts_agree(latents, 2)


def guidance_of_parts(parts: int, order: Guidance) -> Guidance:
    """How guidance lies in a batch of so many parts, if it lies in two as `order` says."""
    if parts == 3 and order == "uncond-first":
        return "uncond-cond-perturbed"
    return order if parts == PARTS[order] else "none"


def count_images(latents: Tensor, guidance: Guidance | None, order: Guidance = "uncond-first") -> int:
    """B, how many images a batch of latents [G * B, ...] holds.

    Args:
        latents: the batch.
        guidance: how guidance lies in it; None finds that out by its equal parts.
        order: how it would lie in two.
    """
    if guidance is None:
        found = next((parts for parts in (2, 3) if parts_agree(latents, parts)), 1)
        guidance = guidance_of_parts(found, order)
    return len(latents) // PARTS[guidance]


def conditional_rows(batch: int, guidance: Guidance) -> range:
    """Which rows of a batch [G * B, ...] are its conditional part."""
    images = batch // PARTS[guidance]
    first = 0 if guidance in ("none", "cond-first") else images
    return range(first, first + images)


def branches_of(batch: Tensor, guidance: Guidance) -> tuple[Tensor, Tensor | None]:
    """The conditional and the unconditional part [B, ...] of a batch [G * B, ...]; None where it has no such part."""
    if guidance == "none":
        return batch, None
    first, second, *_ = batch.chunk(PARTS[guidance])
    return (first, second) if guidance == "cond-first" else (second, first)


def combined(cond: Tensor, uncond: Tensor | None, scale: float) -> Tensor:
    """Uncond + scale (cond - uncond), the guided prediction; the conditional one where there is no other."""
    return cond if uncond is None else torch.lerp(uncond, cond, scale)


def guided(batch: Tensor, guidance: Guidance, scale: float = GUIDANCE_SCALE) -> Tensor:
    """What guidance makes of a batch [G * B, ...]: one prediction for each image [B, ...]."""
    return combined(*branches_of(batch, guidance), scale)
