"""Running a model without weights or arithmetic: on torch's meta device, as far as its code has numbers at all."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from tokenprune.engine.call_arguments import Given
from tokenprune.engine.copies import bare_twin
from tokenprune.engine.masked_module import MaskedModule
from tokenprune.engine.settings import PruningSettings
from tokenprune.engine.step_tracker import OneGeneration
from tokenprune.engine.timeline import Timeline
from tokenprune.errors import one_line
from tokenprune.modulemap import ModuleMap
from tokenprune.policies.sequential import SequentialPolicy
from tokenprune.reuse.base import Hold
from tokenprune.schedule import CountSchedule

Result = TypeVar("Result")

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
        output = func(*given[0], **given[1])
        if func is F.scaled_dot_product_attention and output.is_meta:
            # kernels give [B, l, H, D] transposed, as some processors expect; the meta device's does not
            return output.transpose(1, 2).contiguous().transpose(1, 2)
        return output


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


def meta_twin(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A bare copy of the model on the meta device, to be called under `MetaWins`.

    Linear layers whose weights are packed compute as plain ones: operations and shapes are the same.

    Args:
        model: any model; it may run meanwhile.
        dtype: precision of the floating-point parameters and buffers; None takes the model's.
    """
    twin = bare_twin(model, stand_in(dtype))
    for module in twin.modules():
        sizes: tuple[Any, ...] = tuple(getattr(module, name, None) for name in ("out_features", "in_features"))
        weight = getattr(module, "weight", None)
        plain = isinstance(weight, Tensor) and weight.is_floating_point() and tuple(weight.shape) == sizes
        if all(isinstance(size, int) for size in sizes) and not plain and not hasattr(module, "base_layer"):
            module.__dict__["forward"] = functools.partial(F.linear, weight=torch.empty(sizes, device="meta"))
    return twin


def pruned_twin(
    model: nn.Module, module_map: ModuleMap, arguments: Given, counts: Sequence[int], with_text: bool = True
) -> tuple[nn.Module, Given]:
    """A copy of the model with hooks, to be called under `MetaWins`, and what to call it with.

    Its first call computes all tokens, those after it `counts`. It is on the meta device, or has the model's own
    weights where the map says that it reads values. Hooks and wrapped forwards of others are left out.

    Args:
        model: the model; it may run meanwhile.
        module_map: its map.
        arguments: of a call, tensors on the meta device unless the map says that the model reads values.
        counts: numbers of tokens n, at least 1 each.
        with_text: whether pruned calls compute the text tokens of joint sequences.
    """
    if module_map.reads_values:
        twin, given = bare_twin(model), copy.deepcopy(arguments)
    else:
        # In single precision: operations count the same, and layers of mixed precision fit together.
        twin, given = meta_twin(model, torch.float32), tree_map(_single, arguments)
    policy, schedule = (
        SequentialPolicy(),
        CountSchedule([None, *counts], () if with_text else range(1, len(counts) + 1)),
    )
    settings = PruningSettings(policy, schedule, Hold(), guidance="none", trusting=True)
    MaskedModule(twin, module_map, settings, Timeline(OneGeneration)).install()
    return twin, given


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def apart(function: Callable[[], Result]) -> Result:
    """What a function gives in a thread of its own, free of the caller's modes: it may be a hook within a call."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()


def fault_on_meta(model: nn.Module, module_map: ModuleMap, arguments: Given, count: int) -> str | None:
    """Why the operations of calls cannot be counted on the meta device: code that needs values of its tensors.

    Args:
        model: the model.
        module_map: its map.
        arguments: of a call, tensors on the meta device.
        count: how many tokens a pruned call computes.

    Returns:
        What the model raises there; None where nothing stands in the way.
    """

    def call() -> None:
        twin, (args, kwargs) = pruned_twin(model, module_map, arguments, [count])
        with torch.no_grad(), MetaWins():
            twin(*args, **kwargs)
            twin(*args, **kwargs)

    try:
        apart(call)
    except Exception as error:  # whatever the model's own code raises without values
        return f"{type(error).__name__}: {one_line(error)}"
    return None
