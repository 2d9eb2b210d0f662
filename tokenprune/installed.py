"""What installed packages offer by name, through Python entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tokenprune.errors import ConfigurationError, one_line


def names_in(group: str) -> list[str]:
    """Names of all entry points of a group, sorted."""
    return sorted({entry.name for entry in entry_points(group=group)})


def load(group: str, name: str) -> Any:
    """What an installed package offers by this name in a group.

    Raises:
        ConfigurationError: nothing has that name, two packages offer different things by it, or importing it fails.
    """
    found: dict[str, EntryPoint] = {entry.value: entry for entry in entry_points(group=group, name=name)}
    if len(found) != 1:
        by = " and ".join(sorted(found)) or f"nothing; there are {', '.join(names_in(group)) or 'none'}"
        raise ConfigurationError(
            f"expected one entry point {name!r} of the group {group!r} among the installed packages, got {by}"
        )
    (entry,) = found.values()
    try:
        return entry.load()
    except Exception as error:  # whatever the package's own code raises when it is imported
        package = entry.dist.name if entry.dist is not None else "a package"
        raise ConfigurationError(
            f"the entry point {name!r} of the group {group!r}, {entry.value} of {package}, cannot be imported: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
