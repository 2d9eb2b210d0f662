"""Tensors that stay where they are from step to step, as graphs that were captured once need it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


def store(kept: Tensor | None, fresh: Tensor) -> Tensor:
    """Copy a tensor into the memory of an earlier one, which stays where it is; if it does not fit, into new memory."""
    if kept is None or (kept.shape, kept.dtype, kept.device) != (fresh.shape, fresh.dtype, fresh.device):
        return fresh.contiguous().clone()
    return kept.copy_(fresh)


def is_writable(kept: Tensor | None) -> bool:
    """Whether a tensor can be written now; what inference mode made cannot be outside of it."""
    return kept is None or torch.is_inference_mode_enabled() or not kept.is_inference()


class StaticBuffers:
    """Tensors that are made anew at each step, kept at one address for each name and shape."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Hashable, torch.Size], Tensor] = {}
        self._wanted: set[tuple[Hashable, torch.Size]] = set()
        self._parts: dict[Hashable, StaticBuffers] = {}

    def part(self, name: Hashable) -> StaticBuffers:
        """Buffers of their own."""
        return self._parts.setdefault(name, StaticBuffers())

    def put(self, name: Hashable, fresh: Tensor) -> Tensor:
        """A copy of a tensor where the last one of this name and shape was; that one is overwritten."""
        place = name, fresh.shape
        kept = self._kept.get(place)
        self._wanted.add(place)
        self._kept[place] = store(kept if is_writable(kept) else None, fresh)
        return self._kept[place]

    def write(self, name: Hashable, shape: tuple[int, ...], function: Callable[..., Tensor], *given: Any) -> Tensor:
        """What a function of torch makes of its arguments, written by it where the last result of this name was.

        Args:
            name: its name.
            shape: of the result.
            function: takes `out`.
            given: its arguments, the first a tensor or several of the result's type and device.
        """
        place = name, torch.Size(shape)
        kept, like = self._kept.get(place), given[0] if isinstance(given[0], Tensor) else given[0][0]
        self._wanted.add(place)
        if kept is None or not is_writable(kept) or (kept.dtype, kept.device) != (like.dtype, like.device):
            self._kept[place] = function(*given)
        else:
            function(*given, out=kept)
        return self._kept[place]

    def constant(self, name: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """A tensor that its name says all about, made once."""
        place = name, torch.Size()
        self._wanted.add(place)
        if place not in self._kept:
            self._kept[place] = make()
        return self._kept[place]

    def numbers(self, first: int, step: int, count: int, device: torch.device) -> Tensor:
        """So many whole numbers a step apart, from the first on [count, 1]; never overwritten."""
        return self.constant(
            ("numbers", first, step, count, device),
            lambda: torch.arange(first, first + count * step, step, device=device).unsqueeze(1),
        )

    def tidy(self) -> None:
        """Let go of what nobody put here since it was tidied last."""
        self._kept = {place: kept for place, kept in self._kept.items() if place in self._wanted}
        self._wanted.clear()
        for part in self._parts.values():
            part.tidy()


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors made in inference mode do not count, and give 0."""
    return 0 if tensor.is_inference() else tensor._version
