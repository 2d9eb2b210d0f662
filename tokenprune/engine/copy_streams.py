"""Copies between a device and host memory beside what the device computes, in order and without the host waiting.

`CudaCopies` has a CUDA stream of its own. `Copies` is what it adds that to: the same copies, made at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from tokenprune.notices import LOGGER

Pairs: TypeAlias = Iterable[tuple[Tensor, Tensor]]
"""Where to copy, and what."""


class Copies:
    """Copies of one device, made at once: for the CPU, and devices whose streams are not known here.

    Attributes:
        fetched: bytes that were copied to the device.
        returned: bytes that were copied from it.
    """

    def __init__(self) -> None:
        self.fetched = self.returned = 0

    def fetch(self, pairs: Pairs) -> None:
        """Copy from host memory to the device, behind all copies before."""
        for to, source in pairs:
            self.fetched += to.nbytes
            self._copy(to, source)

    def give_back(self, pairs: Pairs) -> None:
        """Copy from the device to host memory, behind all copies before and all that was computed so far."""
        self.wait_for_computation()
        for to, source in pairs:
            self.returned += to.nbytes
            self._copy(to, source)

    def clear(self, memory: Iterable[Tensor]) -> None:
        """Fill memory of the device with zeros, behind all copies before."""
        for tensor in memory:
            tensor.zero_()

    def wait_for_computation(self) -> None:
        """Let coming copies wait for what was computed so far; here nothing is ever under way."""

    def mark(self) -> torch.cuda.Event | None:
        """The place behind all copies so far, for `hold_computation`."""
        return None

    def hold_computation(self, mark: torch.cuda.Event | None) -> None:
        """Let coming computations wait for the copies before a mark."""

    def finish(self) -> None:
        """Let the host wait for all copies."""

    def host_memory(self, like: Tensor) -> Tensor:
        """Memory of the host for what is in a tensor of the device; on the meta device, for none."""
        return torch.empty(like.shape, dtype=like.dtype, device="meta" if like.is_meta else "cpu")

    def _copy(self, to: Tensor, source: Tensor) -> None:
        to.copy_(source)


class CudaCopies(Copies):
    """Copies on a stream of a CUDA device beside the one that computes; the two wait for each other by events.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pins = True

    def clear(self, memory: Iterable[Tensor]) -> None:
        """Fill memory of the device with zeros, behind all copies before."""
        with torch.cuda.stream(self._stream):
            super().clear(memory)

    def wait_for_computation(self) -> None:
        """Let coming copies wait for what was computed so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def mark(self) -> torch.cuda.Event | None:
        """The place behind all copies so far, for `hold_computation`."""
        return self._stream.record_event()

    def hold_computation(self, mark: torch.cuda.Event | None) -> None:
        """Let coming computations wait for the copies before a mark."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self) -> None:
        """Let the host wait for all copies."""
        self._stream.synchronize()

    def host_memory(self, like: Tensor) -> Tensor:
        """Page-locked memory of the host, which copies need to go on beside the host; else any, and a warning."""
        if self._pins:
            try:
                return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            except RuntimeError as error:
                self._pins = False
                LOGGER.warning(
                    "keys and values lie in pageable host memory, and copies of it make the host wait: the system "
                    "locks no more pages (%s)",
                    error,
                )
        return super().host_memory(like)

    def _copy(self, to: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)


def copies_of(device: torch.device) -> Copies:
    """What copies for a device."""
    return CudaCopies(device) if device.type == "cuda" else Copies()
