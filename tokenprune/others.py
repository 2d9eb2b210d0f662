"""What else happens to a model while it is pruned: other caches, copies, parts that are replaced."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping
from itertools import chain
from typing import Any, SupportsIndex

from torch import nn

from tokenprune.errors import CacheConflictError

REGISTRY = "_diffusers_hook"
HARMLESS = {"text_kv_cache_transformer", "text_kv_cache_block"}
"""Caches of diffusers that keep what depends on the text alone; all others leave out blocks or attention."""
COPYING = "__reduce_ex__"
PACKAGE = "tokenprune."
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)


def refuse_caches(model: nn.Module) -> None:
    """Raise CacheConflictError if hooks of diffusers keep something of the model from step to step.

    Offloading and casting hooks keep nothing and pass.
    """
    found: dict[str, str] = {}
    helpers: dict[str, None] = {}
    for path, module in model.named_modules():
        registry: Any = module.__dict__.get(REGISTRY)
        for name, hook in {} if registry is None else registry.hooks.items():
            if hook._is_stateful and name not in HARMLESS:
                found.setdefault(name, f"{type(hook).__name__} on {path or 'the model'}")
            if hasattr(hook, "new_forward"):
                helpers[name] = None
    if not found:
        return
    way_out = "model.disable_cache()"
    if getattr(model, "_cache_config", None) is None:
        calls = " and ".join(f"remove_hook({name!r})" for name in {**found, **helpers})
        way_out = f"{calls} of diffusers.hooks.HookRegistry.check_if_exists_or_initialize(model)"
    raise CacheConflictError(
        f"{type(model).__name__}: carries a cache of diffusers ({', '.join(found.values())}), which leaves out work "
        f"that pruning relies on; expected one of the two. Take the cache off first ({way_out}), or remove() the handle"
    )


class Places:
    """Which modules stand at given paths of a model, so that replaced ones are noticed at the cost of dict look-ups."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        prefixes = {path.rsplit(".", drop)[0] for path in paths for drop in range(path.count(".") + 1)}
        self._links = []
        for prefix in sorted(prefixes - {""}):
            parent, _, name = prefix.rpartition(".")
            modules = model.get_submodule(parent)._modules
            self._links.append((modules, name, modules[name]))

    @property
    def changed(self) -> bool:
        """Whether another module stands at one of the paths by now."""
        return any(modules.get(name) is not module for modules, name, module in self._links)


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
