"""The most memory that tensors take at once."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak:
    """Bytes that tensors took at once, at most, beyond those held when the context began; 0 until it ends."""

    nbytes = 0

    def __init__(self, restart: Callable[[], None]) -> None:
        self.restart = restart
        """Forgets the peak so far, but not what is held."""


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch what runs within: on CUDA by the allocator's peak, elsewhere by the storages that operators return.

    The latter slows operators down, and sees neither what a kernel needs for itself nor what compiled code allocates.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        peak = Peak(partial(torch.cuda.reset_peak_memory_stats, device))
        peak.restart()
        yield peak
        torch.cuda.synchronize(device)
        peak.nbytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with _LiveStorages() as live:
            peak = Peak(live.restart)
            yield peak
        peak.nbytes = live.most


class _LiveStorages(TorchDispatchMode):
    """Adds up the bytes of storages that operators made and that are still referred to."""

    def __init__(self) -> None:
        super().__init__()
        self._made: set[int] = set()
        self._now = 0
        self.most = 0

    def restart(self) -> None:
        self.most = self._now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if storage._cdata not in given | self._made:  # else a view of a storage from before, or known
                self._add(storage)
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        self._made.add(key)
        self._now += nbytes
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._freed, key, nbytes).atexit = False

    def _freed(self, key: int, nbytes: int) -> None:
        self._made.discard(key)
        self._now -= nbytes


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
