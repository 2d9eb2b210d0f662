"""Keys and values of attention modules, kept for the whole sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenprune.ops.selection import Selection
from tokenprune.ops.static_memory import StaticBuffers, is_writable, store

Span = tuple[int, int]
"""Where image tokens begin among keys, and how many there are; all around them is computed at every call."""


class BufferKey(NamedTuple):
    """What keys and values are kept under.

    Attributes:
        path: of the attention module in the model.
        number: their place among those that the module attends to, in attention calls with keys of their own.
    """

    path: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.path}, keys {self.number + 1}" if self.number else self.path


def narrow(fresh: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in another floating type, cut off where that ends; None leaves it as it is."""
    if dtype is None or dtype == fresh.dtype:
        return fresh
    range_ = torch.finfo(dtype)
    return (fresh.clamp(range_.min, range_.max) if range_.max < torch.finfo(fresh.dtype).max else fresh).to(dtype)


@dataclass(frozen=True)
class FreshKeys:
    """Which keys a pruned call computes: those of selected image tokens, and all others.

    Attributes:
        selection: them all, out of whole sequences.
        rows: their places [B * l] in the flattened [B * L] sequences, equally many for each image.
        chosen: of those, the ones of image tokens [B * n].
        places: the same [B * n] among image tokens alone, flattened to [B * N].
        first: where image tokens begin, in whole sequences and in computed ones.
    """

    selection: Selection
    rows: Tensor
    chosen: Tensor
    places: Tensor
    first: int

    @classmethod
    def of(cls, selection: Selection, span: Span, static: StaticBuffers) -> FreshKeys:
        """The keys of a selection out of whole sequences, in which image tokens lie at `span`."""
        (first, images), length = span, selection.num_tokens
        rows = static.put("rows", selection.rows(length))
        if images == length:
            return cls(selection, rows, rows, rows, 0)
        index = selection.index[:, first : first + selection.count - (length - images)]
        chosen, places = Selection(index, length).rows(length), Selection(index - first, images).rows(images)
        return cls(selection, rows, static.put("chosen", chosen), static.put("places", places), first)


class KeyValueBuffer:
    """Keys and values of one attention module for the whole sequence, each stored as [B, L, H, D].

    Rows are then contiguous, as attention modules project them, so a pruned step copies whole rows. B images (of all
    guidance halves), L keys (image and text), H heads, D channels of a head.

    Attributes:
        key: the keys [B, L, H, D]; None before the first record.
        value: the values [B, L, H, D].
        clock: the timestep of the call under way, a tensor [] that the engine renews in place.
        dtype: what keys and values are kept in; None keeps them as they come.
    """

    least_bytes = 1
    """Bytes that a kept number takes at least."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.clock: Tensor | None = None
        self.dtype: torch.dtype | None = None

    def restart(self) -> None:
        """A new generation begins: what is in the memory belongs to another one."""

    def record(self, key: Tensor, value: Tensor, span: Span) -> None:
        """Store all rows of key and value [B, H, L, D]; memory is reused while shapes stay.

        Args:
            key: [B, H, L, D].
            value: [B, H, L, D].
            span: where image tokens lie among the L.
        """
        self.key = store(self.key, narrow(key.transpose(1, 2), self.dtype))
        self.value = store(self.value, narrow(value.transpose(1, 2), self.dtype))

    def needed(self, key: Tensor, value: Tensor, span: Span) -> int:
        """Bytes that recording these would take where nothing is kept yet; arguments as of `record`."""
        return sum(each.numel() * (self.dtype or each.dtype).itemsize for each in (key, value))

    def update(self, fresh: FreshKeys, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite rows with fresh ones and return the whole key and value [B, H, L, D].

        Args:
            fresh: which rows.
            key: fresh keys [B, H, l, D].
            value: fresh values [B, H, l, D].
        """
        whole = []
        for kept, given in zip(self.kept, (key, value), strict=True):
            new = narrow(given.transpose(1, 2).flatten(0, 1), kept.dtype)
            bits = torch.uint8 if kept.dtype.itemsize == 1 else kept.dtype  # torch cannot index floats of 8 bits
            kept.view(bits).flatten(0, 1).index_copy_(0, fresh.rows, new.view(bits))
            whole.append(kept.transpose(1, 2).to(given.dtype))
        return whole[0], whole[1]

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        if self.key is None or self.value is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        return self.key, self.value

    @property
    def writable(self) -> bool:
        """Whether the memory can be written now."""
        return is_writable(self.key)

    @property
    def length(self) -> int:
        """L, the number of keys; 0 before the first record."""
        return 0 if self.key is None else self.key.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        return sum(t.nbytes for t in (self.key, self.value) if t is not None)
