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

    Attributes:
        factor: the factors [G * B, 1, 1]; a plain number before anything was learnt.
    """

    def __init__(self, guidance: Guidance, unknown: float, memory: float = MEMORY) -> None:
        self._guidance = guidance
        self._memory = memory
        self._unknown = unknown
        self._fit: Tensor | None = None  # sums of products and of squares [B, 2]
        self.factor: Tensor | float = unknown

    def learn(self, wanted: Tensor, term: Tensor) -> None:
        """Take in what the term [G * B, n, C] should have been."""
        both = guided(torch.stack([wanted, term], dim=1), self._guidance)
        fit = (both * both[:, 1:]).sum((2, 3)).nan_to_num()
        self._fit = fit if self._fit is None else fit.add(self._fit, alpha=self._memory)
        product, square = self._fit.unbind(1)
        found = damping_of(product, square)
        if self._unknown:
            found = torch.where(square > 0, found, self._unknown)
        self.factor = found.view(-1, 1, 1).repeat(PARTS[self._guidance], 1, 1)


def damped(total: Tensor, term: Tensor, factor: Tensor | float) -> Tensor:
    """The total and a term [G * B, n, C] times its factor, as of `Damping`."""
    return torch.addcmul(total, term, factor) if isinstance(factor, Tensor) else total.add(term, alpha=factor)
