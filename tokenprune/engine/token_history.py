"""When each token was computed last, and how far its forecast then was off."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.selection import Selection


class TokenHistory:
    """When each token was computed, and how far from its forecast it then was.

    Full steps leave one number for all tokens, so that they cost nothing; pruned ones a number for each.

    Attributes:
        forecast_error: ||fresh - forecast||_2 at each token's last computation [B, N]; None while nobody needs it.
    """

    def __init__(self, images: int, tokens: int, device: torch.device) -> None:
        self._shape, self._device = (images, tokens), device
        self._full_steps = 0
        self._pruned: Tensor | int = 0  # pruned steps that computed the token
        self._last: Tensor | int = -1  # the step that computed it last
        self._gap: Tensor | int = 1
        self.forecast_error: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """How many steps computed each token [B, N], int32."""
        return self._of_tokens(self._pruned + self._full_steps)

    @property
    def gap(self) -> Tensor | None:
        """The age each token had reached when its forecast error was noted [B, N], int32; None without such errors."""
        return None if self.forecast_error is None else self._of_tokens(self._gap)

    def age(self, step: int) -> Tensor:
        """Steps since each token was last computed [B, N], int32."""
        return self._of_tokens(step - self._last)

    def note(self, step: int, selection: Selection | None, forecast_error: Tensor | None) -> None:
        """Take in a step that computed the selected tokens (None: all) with their forecast errors [B, n]."""
        if selection is None:
            if forecast_error is not None:
                self.forecast_error, self._gap = forecast_error, step - self._last
            self._last, self._full_steps = step, self._full_steps + 1
            return
        last, index = self._of_tokens(self._last), selection.index
        if forecast_error is not None:
            known = self.forecast_error
            known = torch.zeros(self._shape, device=self._device) if known is None else known
            self.forecast_error = known.scatter(1, index, forecast_error)
            self._gap = self._of_tokens(self._gap).scatter(1, index, step - last.gather(1, index))
        self._last = last.scatter(1, index, step)
        self._pruned = self._of_tokens(self._pruned).scatter(1, index, 1, reduce="add")

    def _of_tokens(self, number: Tensor | int) -> Tensor:
        """A number for each token [B, N], int32, where there is one for all."""
        if isinstance(number, Tensor):
            return number
        return torch.full(self._shape, number, dtype=torch.int32, device=self._device)
