"""Noticing, also on the CPU, where a program would wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = (
    "aten._local_scalar_dense",
    "aten._unique",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.nonzero",
    "aten.unique",
)
COPYING = (Tensor.cpu, Tensor.new_tensor, Tensor.numpy, Tensor.tolist, torch.as_tensor, torch.tensor)
"""Copies between host and device that wait on a GPU; on the CPU they are no operators, or unremarkable ones."""


class WaitedError(AssertionError):
    """An operator whose result the host must wait for."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        masked = name.startswith("aten.index") and len(args) > 1 and _has_mask(args[1])
        if name.startswith(WAITING) or masked:
            raise WaitedError(f"{name}{' with a mask' if masked else ''} waits for the device")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COPYING:
            raise WaitedError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


def _has_mask(indices: object) -> bool:
    given = indices if isinstance(indices, (list, tuple)) else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in given)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise WaitedError where the host waits for the device: to read from it, or to copy to it."""
    with _Calls(), _Operators():
        yield
