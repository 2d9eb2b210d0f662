"""Copies and bare views of a pruned model: without our hooks and attributes."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, SupportsIndex

from torch import nn

from tokenprune.engine.cache_conflicts import REGISTRY
from tokenprune.engine.model_hooks import ATTRIBUTES

COPYING = "__reduce_ex__"


PACKAGE = "tokenprune."


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)


BARE = ("forward", "cache_context", "_compiled_call_impl", REGISTRY, *ATTRIBUTES)


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


@contextlib.contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """The model without anybody's hooks, wrapped forwards and compiled code, for as long as the block lasts."""
    saved = {module: dict(module.__dict__) for module in model.modules()}
    try:
        for module in saved:
            for name in BARE:
                module.__dict__.pop(name, None)
            for name in HOOKS:
                module.__dict__[name] = OrderedDict()
        yield
    finally:
        for module, attributes in saved.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)
