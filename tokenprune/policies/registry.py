"""Policies of installed packages, found through Python entry points."""

from __future__ import annotations

from tokenprune.errors import ConfigurationError
from tokenprune.installed import load, names_in
from tokenprune.policies.base import SelectionPolicy

POLICIES = "tokenprune.policies"


def known_policies() -> list[str]:
    """Names of the policies that installed packages offer, sorted."""
    return names_in(POLICIES)


def find_policy(name: str) -> type[SelectionPolicy]:
    """The policy class that an installed package registered under this name.

    Raises:
        ValueError: there is none, or it cannot be imported.
    """
    try:
        found: type[SelectionPolicy] = load(POLICIES, name)
    except ConfigurationError as error:
        raise ValueError(f"policy: {error}") from error
    return found
