"""Policies of installed packages, found through Python entry points."""

from __future__ import annotations

from importlib.metadata import entry_points

from tokenprune.policies.base import SelectionPolicy

POLICIES = "tokenprune.policies"


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
