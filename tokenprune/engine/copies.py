"""Copies of a pruned model: plain ones to keep, without our hooks and attributes, and bare ones to run."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tokenprune.compiled import original_of
from tokenprune.engine.model_hooks import ATTRIBUTES
from tokenprune.engine.parallelism import CONFIG, REGISTRY

COPYING = "__reduce_ex__"


PACKAGE = "tokenprune."


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)


WRAPPERS = ("forward", "cache_context", "_compiled_call_impl", "_hf_hook", "_old_forward", REGISTRY, *ATTRIBUTES)
"""Attributes of a module that stand between its callers and its class: ours, torch's, accelerate's, diffusers'."""


TORCH = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that torch keeps parts, tensors and hooks of a module in."""


ATTEMPTS = 5
"""How often copying an object is tried that another thread changes meanwhile."""


def plain_twin(model: nn.Module, ours: Iterable[str], own: Mapping[str, Any]) -> nn.Module:
    """A copy of the model that shares its tensors and has none of our hooks and attributes.

    Args:
        model: the pruned model; it may run meanwhile.
        ours: names of our attributes of any module.
        own: attributes of the model that ours stand in for, by name; None where there was none.
    """
    names = set(ours)
    held = [module.__dict__[name] for module in model.modules() for name in names & set(module.__dict__)]
    hooks = [dict(module.__dict__[kind]) for module in model.modules() for kind in HOOKS[:2]]
    numbers = {number for each in hooks for number, hook in each.items() if _is_ours(hook)}
    state = {name: value for name, value in model.__getstate__().items() if name not in names and name not in own}
    state.update({name: value for name, value in own.items() if value is not None})
    state.update({kind: _without(state[kind], numbers) for kind in HOOKS})
    twin = type(model).__new__(type(model))
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    memo.update(dict.fromkeys(map(id, held), Ellipsis))
    memo[id(model)] = twin
    twin.__setstate__(copy.deepcopy(state, memo))
    for module in twin.modules():
        for name in names & set(module.__dict__):
            del module.__dict__[name]
        module.__dict__.update({kind: _without(module.__dict__[kind], numbers) for kind in HOOKS})
    return twin


def _is_ours(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith(PACKAGE)


def _without(hooks: Mapping[int, Any], numbers: Container[int]) -> OrderedDict[int, Any]:
    return OrderedDict((number, hook) for number, hook in hooks.items() if number not in numbers)


def reduce_plainly(
    model: nn.Module, ours: Iterable[str], own: Mapping[str, Any], protocol: SupportsIndex
) -> str | tuple[Any, ...]:
    """Stands in for a pruned model's `__reduce_ex__`: deep copies and pickles of it are those of its plain twin."""
    return plain_twin(model, ours, own).__reduce_ex__(protocol)


def bare_twin(model: nn.Module, stand_in: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A copy of the model without anybody's hooks, wrapped forwards and compiled code, to run in the model's place.

    Whatever a call leaves behind in its modules, buffers and plain objects, it leaves in the copy. Shared is only what
    cannot be copied (a lock, say).

    Args:
        model: any model; it may run meanwhile, in another thread, too.
        stand_in: makes what takes the place of each parameter and buffer. None shares parameters, which calls only
            read, and copies buffers, which they may write.
    """
    return _Twins(list(model.modules()), stand_in).of(model)


class _Twins:
    """Bare copies of modules, which refer to each other as the modules do."""

    def __init__(self, modules: Sequence[nn.Module], stand_in: Callable[[Tensor], Tensor] | None) -> None:
        self._stand_in = stand_in
        self._kept: list[Any] = []  # what the memo knows by its address must not move out
        self._memo: dict[int, Any] = {id(module): _empty(module) for module in modules}
        self._memo[id(self._memo)] = self._kept
        configs = [vars(module)[CONFIG] for module in modules if CONFIG in vars(module)]
        self._memo.update({id(config): None for config in configs})  # a copy is not divided over devices
        for module in modules:
            self._fill(self.of(module), dict(module.__dict__))

    def of(self, module: nn.Module) -> nn.Module:
        """The copy of one of the modules."""
        twin: nn.Module = self._memo[id(module)]
        return twin

    def _fill(self, twin: nn.Module, own: Mapping[str, Any]) -> None:
        for name, tensor in dict(own["_parameters"]).items():
            twin._parameters[name] = self._tensor(tensor, shared=True)
        for name, tensor in dict(own["_buffers"]).items():
            twin._buffers[name] = self._tensor(tensor, shared=False)
        for name, child in dict(own["_modules"]).items():
            twin._modules[name] = None if child is None else self.of(child)  # an empty list of modules is false
        twin._non_persistent_buffers_set.update(own["_non_persistent_buffers_set"])
        for name in set(own) - TORCH - set(WRAPPERS):
            twin.__dict__[name] = self._copied(own[name])
        if original_of(twin) is not twin:
            twin.__dict__["forward"] = original_of(twin)

    def _tensor(self, tensor: Any, shared: bool) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in self._memo:
            self._kept.append(tensor)
            make = self._stand_in or (lambda found: found if shared else found.detach().clone())
            self._memo[id(tensor)] = make(tensor)
        return self._memo[id(tensor)]

    def _copied(self, value: Any) -> Any:
        known = len(self._memo)
        for _ in range(ATTEMPTS):
            try:
                return copy.deepcopy(value, self._memo)
            except RuntimeError:  # another thread changed a dictionary meanwhile; or torch cannot copy a tensor
                self._forget(known)
            except Exception:
                break
        self._forget(known)
        return value

    def _forget(self, known: int) -> None:
        """Let go of copies that were begun and not ended."""
        while len(self._memo) > known:
            self._memo.popitem()


def _empty(module: nn.Module) -> nn.Module:
    """A module of the same class with nothing in it."""
    twin: nn.Module = object.__new__(type(module))  # classes of torch's fully_shard make others when they are called
    twin.__dict__.update(vars(nn.Module()))
    return twin


class _Shapes(TorchFunctionMode):
    """Deep copies of tensors are tensors on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))


def shapes_of(value: Any, keeping: bool = False) -> Any:
    """A copy of a call's arguments with tensors on the meta device, those inside of objects too, which may change.

    Args:
        value: the arguments.
        keeping: whether tensors that are arguments themselves stay as they are, as their values matter.
    """
    return tree_map(lambda leaf: leaf if keeping and isinstance(leaf, Tensor) else _shape_of(leaf), value)


def _shape_of(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return torch.empty_like(leaf, device="meta")
    try:
        with _Shapes():
            return copy.deepcopy(leaf)
    except Exception:  # objects that cannot be copied: they stay what they are
        return leaf
