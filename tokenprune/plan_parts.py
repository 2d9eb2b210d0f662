"""The classes that a plan may be made of, by the names that files give them."""

from __future__ import annotations

from inspect import isabstract
from types import ModuleType
from typing import Any

from tokenprune import cluster_correction, policies, reuse, schedule, taylor
from tokenprune.errors import ConfigurationError
from tokenprune.policy import SelectionPolicy
from tokenprune.registry import POLICIES, find_policy, known_policies
from tokenprune.reuse import Reuse
from tokenprune.schedule import Schedule


def _classes(kind: type, *modules: ModuleType) -> dict[str, type]:
    found = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, kind) and not isabstract(value)}


OWN: dict[type, dict[str, type]] = {
    SelectionPolicy: _classes(SelectionPolicy, policies),
    Schedule: _classes(Schedule, schedule),
    Reuse: _classes(Reuse, reuse, taylor, cluster_correction),
}
"""The package's own, by kind and name."""

INSTALLED: dict[type, Any] = {SelectionPolicy: (known_policies, find_policy, POLICIES)}
"""How to list and to find those that other packages register, and their group of entry points."""


def names_of(kind: type) -> list[str]:
    """Names of all classes of a kind: `SelectionPolicy`, `Schedule` or `Reuse`."""
    others = INSTALLED[kind][0]() if kind in INSTALLED else []
    return [*OWN[kind], *others]


def find_part(kind: type, name: str) -> type:
    """The class of a kind with a name that `names_of` lists."""
    return OWN[kind].get(name) or INSTALLED[kind][1](name)


def name_of(part: Any) -> str:
    """The name of a policy's, schedule's or reuse's class.

    Raises:
        ConfigurationError: it is neither the package's own nor registered as an entry point.
    """
    kind = next(kind for kind in OWN if isinstance(part, kind))
    for name in names_of(kind):
        if type(part) is find_part(kind, name):
            return name
    way_out = f"; register it as an entry point of the group {INSTALLED[kind][2]!r}" if kind in INSTALLED else ""
    raise ConfigurationError(f"{type(part).__name__}: expected one of {', '.join(names_of(kind))}{way_out}")
