"""Which tokens a step computes: a value object of row indices, and the gather and scatter that go with it.

Letters used throughout the package: B images, N image tokens, n selected tokens, T text tokens, C channels,
H heads, D head dimension, h x w token grid (t x h x w for video).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenprune.errors import SelectionError


@dataclass(frozen=True)
class Selection:
    """The selected tokens of every image.

    Build it with `Selection.top` (from scores), `Selection.from_index` (from indices, checked) or
    `Selection.from_mask`; the bare constructor checks nothing.

    Attributes:
        index: selected tokens [B, n], int64, every row sorted and free of duplicates.
        num_tokens: N, how many tokens an image has.
        flat: `rows(num_tokens)` [B * n], where they are at hand; None: they are reckoned where they are asked for.
    """

    index: Tensor
    num_tokens: int
    flat: Tensor | None = None

    @classmethod
    def top(cls, scores: Tensor, count: int) -> Selection:
        """Select the `count` tokens with the highest scores [B, N]; among equals, the first in the grid.

        Valid by construction, so nothing is read back from the device. NaN counts as the highest score.

        Raises:
            SelectionError: scores are not [B, N], or count is not in 1..N.
        """
        if scores.ndim != 2:
            raise SelectionError(f"scores: expected shape [B, N], got {list(scores.shape)}")
        if not 1 <= count <= scores.shape[1]:
            raise SelectionError(f"count: expected 1 to {scores.shape[1]} (the number of tokens), got {count}")
        order = scores.argsort(dim=1, descending=True, stable=True)
        return cls(order[:, :count].sort(dim=1).values, scores.shape[1])

    @classmethod
    def from_index(cls, index: Tensor, num_tokens: int) -> Selection:
        """Check and sort indices [B, n]; reads one value back from the device.

        Raises:
            SelectionError: wrong shape or dtype, an index out of range, or a duplicate.
        """
        if index.ndim != 2 or not 1 <= index.shape[1] <= num_tokens:
            raise SelectionError(f"index: expected shape [B, n] with 1 <= n <= {num_tokens}, got {list(index.shape)}")
        if index.dtype != torch.int64:
            raise SelectionError(f"index: expected dtype torch.int64, got {index.dtype}")
        index = index.sort(dim=1).values
        out_of_range = (index[:, :1] < 0).any() | (index[:, -1:] >= num_tokens).any()
        duplicates = (index[:, 1:] == index[:, :-1]).any()
        if bool(out_of_range | duplicates):
            if bool(out_of_range):
                low, high = int(index.min()), int(index.max())
                raise SelectionError(f"index: expected values in 0..{num_tokens - 1}, got {low}..{high}")
            raise SelectionError("index: expected unique tokens per image, got duplicates; Selection.top avoids them")
        return cls(index, num_tokens)

    @classmethod
    def from_mask(cls, mask: Tensor, count: int) -> Selection:
        """Select the tokens where a mask [B, N] is true: exactly `count` in every row.

        That is up to the caller, as checking would read from the device.
        """
        places = torch.where(mask, mask.cumsum(1) - 1, count)
        tokens = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        index = torch.empty(len(mask), count + 1, dtype=torch.int64, device=mask.device).scatter_(1, places, tokens)
        return cls(index[:, :count].contiguous(), mask.shape[1])

    @property
    def batch_size(self) -> int:
        """B, the number of images."""
        return self.index.shape[0]

    @property
    def count(self) -> int:
        """n, the number of selected tokens of each image."""
        return self.index.shape[1]

    def to(self, device: torch.device) -> Selection:
        """The same selection with its indices on a device."""
        return self if self.index.device == device else Selection(self.index.to(device), self.num_tokens)

    def rows(self, length: int, offset: int = 0) -> Tensor:
        """Rows [B * n] of the selected tokens in sequences [B, length, ...] flattened to [B * length, ...]."""
        if self.flat is not None and (length, offset) == (self.num_tokens, 0):
            return self.flat
        starts = torch.arange(offset, offset + self.batch_size * length, length, device=self.index.device)
        return (self.index + starts.unsqueeze(1)).flatten()

    def within(self, length: int, first: int | Tensor = 0, most: int | None = None) -> Selection:
        """The selection in sequences [B, length, ...] that hold other tokens, too, which are selected as well.

        Args:
            length: of the sequences, at least N.
            first: where the image tokens begin, an int or one for each image [B].
            most: how many of the other tokens are selected, the first ones; None is all. Not with a `first` for each.
        """
        return Selection(torch.cat(self.parts_within(length, first, most), dim=1), length)

    def parts_within(
        self,
        length: int,
        first: int | Tensor = 0,
        most: int | None = None,
        numbers: Callable[[int, int], Tensor] | None = None,
    ) -> list[Tensor]:
        """The indices of `within` in parts, one after the other.

        Args:
            length: as there.
            first: as there.
            most: as there.
            numbers: gives all whole numbers from one to before another [1, ...], where they are at hand.
        """
        device = self.index.device
        numbers = numbers or (lambda low, high: torch.arange(low, high, device=device).unsqueeze(0))
        others = length - self.num_tokens
        if others == 0:
            return [self.index]
        if isinstance(first, Tensor):
            place = numbers(0, self.count + others) - first.unsqueeze(1)
            chosen = F.pad(self.index, (0, 1)).gather(1, place.clamp(0, self.count))
            moved = torch.where(place < self.count, chosen, place + self.num_tokens - self.count)
            return [torch.where(place < 0, place, moved) + first.unsqueeze(1)]
        others = others if most is None else min(most, others)
        before, behind = (0, min(first, others)), (self.num_tokens + first, self.num_tokens + others)
        parts = [numbers(*before).expand(self.batch_size, -1), self.index + first] if first else [self.index]
        return [*parts, numbers(*behind).expand(self.batch_size, -1)] if others > first else parts

    def take(self, tensor: Tensor, dim: int, batch: int | None) -> Tensor:
        """The selected rows of a tensor whose dimensions come in any order.

        Args:
            tensor: a tensor with N rows along `dim`.
            dim: the dimension that counts tokens.
            batch: the dimension that counts images, of size B or 1 (the same rows for all); the same as `dim` for
                tensors [B * N, ...]; None takes the rows of the first image, where all have the same.
        """
        if batch is None:
            return tensor.index_select(dim, self.index[0])
        if batch == dim:
            rows = self.rows(self.num_tokens)
            return tensor.index_select(dim, rows)
        if tensor.shape[batch] == 1:
            taken = tensor.squeeze(batch).index_select(dim - (batch < dim), self.index.flatten())
            taken = taken.unflatten(dim - (batch < dim), self.index.shape)
            return taken.movedim(dim - (batch < dim), batch)
        return self.gather(tensor.movedim((batch, dim), (0, 1))).movedim((0, 1), (batch, dim))

    def mask(self) -> Tensor:
        """Which tokens are selected [B, N], bool."""
        mask = torch.zeros(self.batch_size, self.num_tokens, dtype=torch.bool, device=self.index.device)
        return mask.scatter_(1, self.index, True)

    def gather(self, tokens: Tensor) -> Tensor:
        """The selected rows [B, n, ...] of tokens [B, N, ...]."""
        self._check(tokens, self.num_tokens)
        flat = tokens.flatten(0, 1).index_select(0, self.rows(self.num_tokens))
        return flat.unflatten(0, (self.batch_size, self.count))

    def scatter(self, tokens: Tensor, base: Tensor) -> Tensor:
        """A copy of base [B, N, ...] in which the selected rows are tokens [B, n, ...]."""
        self._check(tokens, self.count)
        self._check(base, self.num_tokens)
        flat = base.flatten(0, 1).index_copy(0, self.rows(self.num_tokens), tokens.flatten(0, 1))
        return flat.view(base.shape)

    def _check(self, tokens: Tensor, length: int) -> None:
        if tokens.shape[:2] != (self.batch_size, length):
            expected = f"[{self.batch_size}, {length}, ...]"
            raise SelectionError(f"tokens: expected shape {expected}, got {list(tokens.shape)}")
