"""How far a correction is to be trusted, learnt from how well the last ones did."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.guidance import Guidance, guided


class Damping:
    """One factor within [0, 1] for each image, by least squares over its tokens, that forgets.

    Where both halves of guidance share a batch they share the factor, fitted to the guided prediction.

    Args:
        guidance: how classifier-free guidance lies in the batch.
        memory: how much of what was learnt is kept from one observation to the next.
        unknown: the factor where nothing can be told.
    """

    def __init__(self, guidance: Guidance, memory: float, unknown: float) -> None:
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
        tiny = torch.finfo(square.dtype).tiny
        found = torch.where(square > 0, product / square.clamp_min(tiny), self._unknown).clamp(0, 1)
        return found if self._guidance == "none" else found.repeat(2, 1, 1)
