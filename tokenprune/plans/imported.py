"""What a user wrote, by where it is: `module.path:name`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tokenprune.errors import ConfigurationError, one_line

FORM = "module.path:Class"
"""How to say where a class is."""


def imported(target: str) -> Any:
    """What `module.path:name` names; the module is imported, from the working directory where it is not installed.

    Raises:
        ConfigurationError: it cannot be imported, or has nothing of that name.
    """
    module, _, name = target.partition(":")
    try:
        with _from_the_working_directory():
            return getattr(import_module(module), name)
    except Exception as error:  # whatever the module's own code raises
        raise ConfigurationError(f"{target}: {type(error).__name__}: {one_line(error)}") from error


def of_kind(name: str, found: Any, kind: type) -> type:
    """What goes by a name, if it is a class of this kind.

    Raises:
        ConfigurationError: it is none.
    """
    if not isinstance(found, type) or not issubclass(found, kind):
        raise ConfigurationError(f"{name}: expected a class derived from {kind.__name__}, got {found!r}")
    return found


def place_of(kind: type) -> str | None:
    """`module.path:Class` of a class, or None where it cannot be imported like that, as one made in a function."""
    module = sys.modules.get(kind.__module__)
    found = kind.__module__ != "__main__" and getattr(module, kind.__name__, None) is kind
    return f"{kind.__module__}:{kind.__name__}" if found else None


@contextmanager
def _from_the_working_directory() -> Iterator[None]:
    """Modules are looked for there last of all; console scripts do not look there by themselves."""
    sys.path.append("")
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove("")  # the one that was added
        sys.path.reverse()
