"""When each token was computed last."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.selection import Selection


class TokenHistory:
    """When each token was computed, and how far from its forecast it then was.

    Attributes:
        counts: how many steps computed each token [B, N], int32.
        forecast_error: ||fresh - forecast||_2 at each token's last computation [B, N]; None while nobody needs it.
        gap: the age each token had reached at that computation [B, N], int32.
    """

    def __init__(self, images: int, tokens: int, device: torch.device) -> None:
        self.counts = torch.zeros(images, tokens, dtype=torch.int32, device=device)
        self.forecast_error: Tensor | None = None
        self.gap = torch.ones(images, tokens, dtype=torch.int32, device=device)
        self._step = torch.full((images, tokens), -1, dtype=torch.int32, device=device)

    def age(self, step: int) -> Tensor:
        """Steps since each token was last computed [B, N]."""
        return step - self._step

    def note(self, step: int, selection: Selection | None, forecast_error: Tensor | None) -> None:
        """Take in a step that computed the selected tokens (None: all) with their forecast errors [B, n]."""
        everywhere = torch.ones_like(self.counts, dtype=torch.bool)
        computed = everywhere if selection is None else selection.mask()
        self.counts += computed
        if forecast_error is not None:
            known = self.forecast_error
            known = torch.zeros_like(self.counts, dtype=torch.float32) if known is None else known
            whole = forecast_error if selection is None else known.scatter(1, selection.index, forecast_error)
            self.forecast_error = torch.where(computed, whole, known)
        self.gap = torch.where(computed, self.age(step), self.gap)
        self._step = self._step.masked_fill(computed, step)
