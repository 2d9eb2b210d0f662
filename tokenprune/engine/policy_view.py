"""What policies see of a model's predictions: tokens of the grid, channels of noise, one guidance branch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from tokenprune.modulemap import ModuleMap
from tokenprune.ops.grid import TokenGrid, num_tokens
from tokenprune.ops.guidance import GUIDANCE_SCALE, Guidance, branches_of, combined, guidance_of_parts, guided


class PolicyView:
    """How one generation's predictions [G * B, N, P] become what policies see [B, N, C].

    Where all images share a selection, they are one image with the channels of all: [1, N, B * C].

    Args:
        module_map: the model's map.
        guidance: how classifier-free guidance lies in a batch of both its branches; "none" if no batch holds both.
        guidance_scale: None shows the conditional prediction; a number the guided one.
        images: B, images of the batch, without guidance.
        grid: the token grid.
        references: how many image tokens that are no part of the grid lie before and after it.
    """

    def __init__(
        self,
        module_map: ModuleMap,
        guidance: Guidance,
        guidance_scale: float | None,
        images: int,
        grid: TokenGrid,
        references: tuple[int, int] = (0, 0),
    ) -> None:
        self._map = module_map
        self._guidance: Guidance = guidance
        self._scale = guidance_scale
        self._images = images
        self.grid = grid
        self.references = references

    @property
    def images(self) -> int:
        """Images that have a selection of their own."""
        return 1 if self._map.shared else self._images

    @property
    def least_tokens(self) -> int:
        """How many tokens a pruned step computes at least."""
        return self._map.least_tokens

    @property
    def tokens(self) -> int:
        """N of the model, reference tokens included."""
        return num_tokens(self.grid) + sum(self.references)

    @property
    def needs_both_branches(self) -> bool:
        """Whether policies see the guided prediction."""
        return self._scale is not None

    def guidance_of(self, batch: int) -> Guidance:
        """How classifier-free guidance lies in a batch of that size."""
        return guidance_of_parts(batch // self._images, self._guidance) if batch % self._images == 0 else "none"

    def noise(self, predictions: Sequence[Tensor | None], guidance: Guidance) -> Tensor:
        """The conditional or the guided noise [B, N, C].

        Args:
            predictions: of the guidance branches [G * B, N, P], the conditional one first.
            guidance: how guidance lies in the batch of the first.
        """
        first, *others = (self._noise_channels(self._of_grid(p)) for p in predictions if p is not None)
        conditional, unconditional = branches_of(first, guidance)
        if others and unconditional is None:
            unconditional = others[0]
        return self._shared(conditional if self._scale is None else combined(conditional, unconditional, self._scale))

    def forecast_error(self, error: Tensor, guidance: Guidance) -> Tensor:
        """Norms of what a forecast was off [B, n], after guidance: that is what the sampler sees of it."""
        found = self._guided(self._noise_channels(self._of_grid(error)), guidance)
        return self._shared(found.float()).norm(dim=-1)

    def sizes(self, predictions: Sequence[Tensor], guidance: Guidance) -> Tensor:
        """Root mean squares over all tokens of such norms, for each of several predictions."""
        together = torch.stack([self._noise_channels(self._of_grid(p)) for p in predictions], dim=1)
        found = self._guided(together, guidance)
        norms = torch.linalg.vector_norm(found, dim=(0, 2, 3), dtype=torch.float32)
        return norms / math.sqrt(self.images * found.shape[2])

    def attention(self, weights: Tensor) -> Tensor:
        """The weights of the grid's tokens [B, N] from those of all tokens of the conditional branch [B, N]."""
        of_grid = self._of_grid(weights)
        return of_grid.mean(0, keepdim=True) if self._map.shared else of_grid

    def _guided(self, batch: Tensor, guidance: Guidance) -> Tensor:
        """What guidance makes of a batch [G * B, ...]; by a usual scale, if none was given."""
        return guided(batch, guidance, GUIDANCE_SCALE if self._scale is None else self._scale)

    def _of_grid(self, tokens: Tensor) -> Tensor:
        """The tokens of the grid [B, N, ...] among those of the model, or the selected ones as they are."""
        before, count = self.references[0], num_tokens(self.grid)
        return tokens[:, before : before + count] if tokens.shape[1] == self.tokens else tokens

    def _noise_channels(self, prediction: Tensor) -> Tensor:
        if self._map.noise_channels is None:
            return prediction
        pixels = rearrange(prediction, "b n (p c) -> b n p c", c=self._map.output_channels)
        return rearrange(pixels[..., : self._map.noise_channels], "b n p c -> b n (p c)")

    def _shared(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b n c -> 1 n (b c)") if self._map.shared else tokens
