"""How far a correction is to be trusted, learnt from how well the last ones did."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.guidance import PARTS, Guidance, guided

MEMORY = 0.3
"""How much of what a damping was learnt from is kept from one observation to the next."""


def damping_of(product: Tensor, square: Tensor) -> Tensor:
    """The factor within [0, 1] that a correction is worth, by least squares; 0 where there was no correction.

    Args:
        product: sums of what was wanted times the correction, of any shape.
        square: sums of the correction squared, of the same shape.
    """
    return (product / square.clamp_min(torch.finfo(square.dtype).tiny)).clamp(0, 1)


class Damping:
    """One factor within [0, 1] for each image, by least squares over its tokens, that forgets.

    Where both halves of guidance share a batch they share the factor, fitted to the guided prediction.

    Args:
        guidance: how classifier-free guidance lies in the batch.
        unknown: the factor where nothing can be told.
        memory: how much of what was learnt is kept from one observation to the next.
    """

    def __init__(self, guidance: Guidance, unknown: float, memory: float = MEMORY) -> None:
        self._guidance = guidance
        self._memory = memory
        self._unknown = unknown
        self._fit: tuple[Tensor, Tensor] | None = None

    def learn(self, wanted: Tensor, term: Tensor) -> None:
        """Take in what the term [G * B, n, C] should have been."""
        visible = guided(term, self._guidance)
        product = (guided(wanted, self._guidance) * visible).sum((1, 2), keepdim=True).nan_to_num()
        square = visible.square().sum((1, 2), keepdim=True).nan_to_num()
        if self._fit is not None:
            product, square = self._memory * self._fit[0] + product, self._memory * self._fit[1] + square
        self._fit = product, square

    @property
    def factor(self) -> Tensor | float:
        """The factors [G * B, 1, 1]; a plain number before anything was learnt."""
        if self._fit is None:
            return self._unknown
        product, square = self._fit
        found = torch.where(square > 0, damping_of(product, square), self._unknown)
        return found.repeat(PARTS[self._guidance], 1, 1)
