"""The table of policies in docs/policies.md, made of what the policies say of themselves."""

from __future__ import annotations

from tokenprune.bench.tables.cells import table_of
from tokenprune.policies import ALL
from tokenprune.policies.base import SelectionPolicy

NAME = "policies"
"""Of the table, between its marks."""


HEADS = ("class", "idea", "source", "cost of a selection", "needs")


def table() -> str:
    """The table as Markdown."""
    return "\n".join(table_of(HEADS, map(_row, ALL))) + "\n"


def _row(policy: type[SelectionPolicy]) -> list[str]:
    """Raise TypeError for a policy that does not describe itself."""
    found = policy.description
    if found is None:
        raise TypeError(f"{policy.__name__}: expected a description, as policies of the package have, got none")
    needs = found.needs or ", ".join(sorted(need.replace("_", " ") for need in policy.needs))
    return [f"`{policy.__name__}`", found.idea, found.source, found.cost, needs]
