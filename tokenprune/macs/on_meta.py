"""Running a model without weights or arithmetic: on torch's meta device, as far as its code has numbers at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

META = torch.device("meta")


def stand_in(dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    """Makes tensors on the meta device in the place of others.

    Args:
        dtype: of floating-point tensors; None is their own.
    """

    def make(tensor: Tensor) -> Tensor:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=wanted, device=META)

    return make


class MetaWins(TorchFunctionMode):
    """Tensors with numbers may meet tensors on the meta device, which have none: the result has none either.

    So what a model computes from plain numbers, or keeps in plain objects or on another device, has its values for as
    long as nothing else goes into it. A tensor on the meta device stays there wherever it is sent. What would write
    such a tensor into one with numbers is left out: no shape changes by it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        on_meta = {leaf.is_meta for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
        if True in on_meta and func in (Tensor.cpu, Tensor.cuda):
            return args[0]
        if True in on_meta and func is Tensor.to:
            given = tree_map(_without_device, given)
        if on_meta == {True, False}:
            if _writes(func) and not args[0].is_meta:
                return args[0]
            given = tree_map(_without_numbers, given)
        return func(*given[0], **given[1])


def _writes(func: Any) -> bool:
    """Whether a function writes into its first argument."""
    name: str = func.__name__
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _without_numbers(value: Any) -> Any:
    return torch.empty_like(value, device=META) if isinstance(value, Tensor) else value


def _without_device(value: Any) -> Any:
    """A device among the arguments of `Tensor.to` becomes the meta device."""
    named = isinstance(value, (torch.device, str, int)) and not isinstance(value, bool)
    return META if named else value
