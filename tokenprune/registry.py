"""Finding the adapters of installed packages through Python entry points."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from tokenprune.errors import UnknownModelError
from tokenprune.installed import load, names_in
from tokenprune.modulemap import ModuleMap

SHORTEST = 2
"""Arguments that a forward must have at least: latents and a timestep."""


GROUP = "tokenprune.adapters"


Adapter: TypeAlias = Callable[[nn.Module], ModuleMap]
"""A function that writes the module map of one model."""


def known_models() -> list[str]:
    """Names of the model classes that installed adapters serve, sorted."""
    return names_in(GROUP)


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter registered for the model's class or its nearest ancestor.

    An entry point is named after the class, either `ClassName` or `package.module.ClassName`.

    Raises:
        UnknownModelError: no adapter fits; the message says how to provide one.
        ConfigurationError: two packages offer different ones, or importing it fails.
    """
    registered = set(known_models())
    for ancestor in type(model).__mro__:
        for name in (f"{ancestor.__module__}.{ancestor.__qualname__}", ancestor.__name__):
            if name in registered:
                adapter: Adapter = load(GROUP, name)
                return adapter
    raise UnknownModelError(
        f"{type(model).__name__}: no adapter describes this model; adapters are installed for "
        f"{', '.join(known_models()) or 'no model at all (install tokenprune-dit, not just its source)'}. Write a "
        f"function that returns a tokenprune.ModuleMap and pass it as apply(..., adapter=function), or register it as "
        f"an entry point of the group {GROUP!r}: see docs/write-an-adapter.md."
    )


def may_be_discovered(model: nn.Module) -> bool:
    """Whether it is worth watching the model: its forward takes latents and a timestep at least."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    found = [each for each in inspect.signature(model.forward).parameters.values() if each.kind in kinds]
    return len(found) >= SHORTEST
