"""Keys and values of attention modules, kept for the whole sequence."""

from __future__ import annotations

from collections.abc import Callable
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


LEVELS = 127
"""The largest whole number of 8 bits that rows are kept as."""


def in_levels(fresh: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., D] as whole numbers of 8 bits, and what to multiply each row by to get it back [..., 1].

    The largest number of a row becomes 127 or -127, so that a row is off by 1/254 of it at most.
    """
    largest = fresh.abs().amax(-1, keepdim=True)
    scale = (largest / LEVELS).clamp_min(torch.finfo(fresh.dtype).tiny)
    return (fresh / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


@dataclass(frozen=True)
class FreshKeys:
    """Which keys a pruned call computes: those of selected image tokens, and all others or the first of them.

    Attributes:
        selection: them all, out of whole sequences.
        rows: their places [B * l] in the flattened [B * L] sequences, equally many for each image.
        chosen: of those, the ones of image tokens [B * n].
        places: the same [B * n] among image tokens alone, flattened to [B * N].
        first: where image tokens begin in computed sequences.
    """

    selection: Selection
    rows: Tensor
    chosen: Tensor
    places: Tensor
    first: int

    @classmethod
    def of(cls, selection: Selection, span: Span, static: StaticBuffers, most: int | None = None) -> FreshKeys:
        """The keys of a selection out of whole sequences, in which image tokens lie at `span`.

        Args:
            selection: the computed tokens.
            span: where those of the image lie.
            static: where indices are kept from step to step.
            most: how many of the others are computed, the first ones; None is all.
        """
        (first, images), length = span, selection.num_tokens
        rows = static.put("rows", selection.rows(length)) if selection.flat is None else selection.flat
        if images == length:
            return cls(selection, rows, rows, rows, 0)
        others = length - images if most is None else min(most, length - images)
        begin, count = min(first, others), selection.count - others
        chosen = static.put("chosen", rows.view(-1, selection.count)[:, begin : begin + count])
        starts = static.numbers(first, length - images, len(chosen), chosen.device)
        places = static.write("places", tuple(chosen.shape), torch.sub, chosen, starts)
        return cls(selection, rows, chosen.flatten(), places.flatten(), begin)


@dataclass
class Home:
    """Where a buffer's memory lies while the attention module does not run, if that is not where the module computes.

    Attributes:
        memory: in host memory, one tensor for each of the buffer's.
        device: the module's.
        empty: whether what is in it belongs to another generation; the buffer then goes on with zeros.
    """

    memory: tuple[Tensor, ...]
    device: torch.device
    empty: bool = False


class KeyValueBuffer:
    """Keys and values of one attention module for the whole sequence, each stored as [B, L, H, D].

    Rows are then contiguous, as attention modules project them, so a pruned step copies whole rows. B images (of all
    guidance halves), L keys (image and text), H heads, D channels of a head.

    Attributes:
        key: the keys [B, L, H, D]; None before the first record.
        value: the values [B, L, H, D].
        clock: the timestep of the call under way, a tensor [] that the engine renews in place.
        dtype: what keys and values are kept in; None keeps them as they come, torch.int8 as whole numbers with a scale
            for each row of a head.
        scales: of keys and values [B, L, H, 1], where they are whole numbers.
        total: adds up what is found over this buffer's heads with what other processes find over theirs; None: all
            heads are here.
        home: where the memory lies while the module does not run; None: where the module computes.
    """

    least_bytes = 1
    """Bytes that a kept number takes at least."""

    reads_recorded = False
    """Whether `record` reads what was recorded before."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.clock: Tensor | None = None
        self.total: Callable[[Tensor], Tensor] | None = None
        self.dtype: torch.dtype | None = None
        self.scales: tuple[Tensor, Tensor] | None = None
        self.home: Home | None = None

    def restart(self) -> None:
        """A new generation begins: what is in the memory belongs to another one."""
        if self.home is not None:
            self.home.empty = True

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """The tensors whose size grows with the model's width; they may be taken elsewhere while the module is idle."""
        return () if self.key is None or self.value is None else (self.key, self.value, *(self.scales or ()))

    def place(self, memory: tuple[Tensor, ...]) -> None:
        """Go on with other memory of the same shapes and types, which holds the same, or will."""
        self.key, self.value = memory[:2]
        self.scales = (memory[2], memory[3]) if self.scales is not None else None

    @property
    def device(self) -> torch.device | None:
        """Where the module computes; None before the first record."""
        return self.home.device if self.home is not None else None if self.key is None else self.key.device

    def record(self, key: Tensor, value: Tensor, span: Span) -> None:
        """Store all rows of key and value [B, H, L, D]; memory is reused while shapes stay.

        Args:
            key: [B, H, L, D].
            value: [B, H, L, D].
            span: where image tokens lie among the L.
        """
        fresh = key.transpose(1, 2), value.transpose(1, 2)
        if self.dtype == torch.int8:
            (first, first_scale), (second, second_scale) = map(in_levels, fresh)
            former = (None, None) if self.scales is None else self.scales
            self.scales = store(former[0], first_scale), store(former[1], second_scale)
        else:
            first, second = (narrow(each, self.dtype) for each in fresh)
        self.key, self.value = store(self.key, first), store(self.value, second)

    def needed(self, key: Tensor, value: Tensor, span: Span) -> int:
        """Bytes that recording these would take where nothing is kept yet; arguments as of `record`."""
        numbers = sum(each.numel() * (self.dtype or each.dtype).itemsize for each in (key, value))
        scales = sum(each[..., 0].numel() * each.itemsize for each in (key, value)) if self.dtype == torch.int8 else 0
        return numbers + scales

    def update(self, fresh: FreshKeys, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite rows with fresh ones and return the whole key and value [B, H, L, D].

        Args:
            fresh: which rows.
            key: fresh keys [B, H, l, D].
            value: fresh values [B, H, l, D].
        """
        scales = (None, None) if self.scales is None else self.scales
        pairs = zip(self.kept, scales, (key, value), strict=True)
        first, second = (self._complete(fresh.rows, kept, scale, given) for kept, scale, given in pairs)
        return first, second

    def _complete(self, rows: Tensor, kept: Tensor, scale: Tensor | None, fresh: Tensor) -> Tensor:
        """The kept rows with fresh ones [B, H, l, D] among them, as [B, H, L, D]."""
        new = fresh.transpose(1, 2)
        places = (rows.view(new.shape[:2]),)
        if scale is not None:
            levels, new_scale = in_levels(new)
            kept.flatten(0, 1).index_put_(places, levels)
            scale.flatten(0, 1).index_put_(places, new_scale)
            return torch.mul(kept, scale).transpose(1, 2)
        bits = torch.uint8 if kept.dtype.itemsize == 1 else kept.dtype  # torch cannot index floats of 8 bits
        kept.view(bits).flatten(0, 1).index_put_(places, narrow(new, kept.dtype).view(bits))
        return kept.transpose(1, 2).to(fresh.dtype)

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        if self.key is None or self.value is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        return self.key, self.value

    @property
    def writable(self) -> bool:
        """Whether the memory can be written now."""
        return all(map(is_writable, self.memory))

    @property
    def length(self) -> int:
        """L, the number of keys; 0 before the first record."""
        return 0 if self.key is None else self.key.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held, but for those at `home`."""
        return 0 if self.home is not None else sum(tensor.nbytes for tensor in self.memory)

    @property
    def host_bytes(self) -> int:
        """Bytes of tensor memory held at `home`."""
        return 0 if self.home is None else sum(tensor.nbytes for tensor in self.home.memory)
