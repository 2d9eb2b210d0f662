"""Finding adapters and policies of installed packages through Python entry points."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeAlias

from torch import nn

from tokenprune.compiled import original_of
from tokenprune.errors import UnknownModelError
from tokenprune.modulemap import ModuleMap
from tokenprune.policy import SelectionPolicy

GROUP = "tokenprune.adapters"
POLICIES = "tokenprune.policies"
Adapter: TypeAlias = Callable[[nn.Module], ModuleMap]
"""A function that writes the module map of one model."""


def known_models() -> list[str]:
    """Names of the model classes that installed adapters serve, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter registered for the model's class or its nearest ancestor.

    An entry point is named after the class, either `ClassName` or `package.module.ClassName`.

    Raises:
        UnknownModelError: no adapter fits; the message says how to provide one.
    """
    registered = {entry.name: entry for entry in entry_points(group=GROUP)}
    for ancestor in type(model).__mro__:
        for name in (f"{ancestor.__module__}.{ancestor.__qualname__}", ancestor.__name__):
            if name in registered:
                adapter: Adapter = registered[name].load()
                return adapter
    raise UnknownModelError(
        f"{type(model).__name__}: no adapter describes this model; adapters are installed for "
        f"{', '.join(sorted(registered)) or 'no model at all (install tokenprune-dit, not just its source)'}. Write a "
        f"function that returns a tokenprune.ModuleMap and pass it as apply(..., adapter=function), or register it as "
        f"an entry point of the group {GROUP!r}: see docs/write-an-adapter.md."
    )


def known_policies() -> list[str]:
    """Names of the policies that installed packages offer, sorted."""
    return sorted({entry.name for entry in entry_points(group=POLICIES)})


def find_policy(name: str) -> type[SelectionPolicy]:
    """The policy class that an installed package registered under this name.

    Raises:
        ValueError: there is none.
    """
    for entry in entry_points(group=POLICIES):
        if entry.name == name:
            found: type[SelectionPolicy] = entry.load()
            return found
    raise ValueError(
        f"policy: no installed package offers {name!r} as an entry point of the group {POLICIES!r}; there are "
        f"{', '.join(known_policies()) or 'none'}"
    )


def transformer_of(target: Any) -> nn.Module:
    """The transformer: the target itself, or what a pipeline holds as `transformer`; without torch.compile's wrapper.

    Raises:
        UnknownModelError: it is neither.
    """
    model = target if isinstance(target, nn.Module) else getattr(target, "transformer", None)
    if not isinstance(model, nn.Module):
        raise UnknownModelError(
            f"expected a transformer (torch.nn.Module) or a pipeline with a `transformer`, got {type(target).__name__}"
        )
    return original_of(model)
