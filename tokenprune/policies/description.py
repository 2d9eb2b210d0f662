"""What a policy says of itself, so that suites, figures, benchmarks, the search for plans and the docs know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`, of which `tokenprune tune` tries some; evenly spread by logarithm if `log`."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class OneOf:
    """Values of which `tokenprune tune` tries any."""

    values: tuple[Any, ...]


Range: TypeAlias = Between | OneOf


@dataclass(frozen=True)
class Variant:
    """A form of a policy that is measured and shown under a name of its own.

    Attributes:
        name: in tables and figures, and of the rows in result files; no other variant of any policy has it.
        source: whose method it is; its first words ("ours", "re-implementation of ...") tell a point's kind in plots.
        settings: those that differ from the defaults.
        maker: the class method that makes it; None is the class itself.
        suites: which of the bench's suites measure it, each with the numbers of full steps at the start that they do it
            with: `{"ablations": (8, 4)}`.
        searched: settings that `tokenprune tune` searches, by name; None leaves the variant out of the search.
    """

    name: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    maker: str | None = None
    suites: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"ablations": (8,)})
    searched: Mapping[str, Range] | None = None

    def make(self, policy: Any, **settings: Any) -> Any:
        """An instance of the variant of that policy class, with further settings."""
        return (getattr(policy, self.maker) if self.maker else policy)(**{**self.settings, **settings})

    def code(self, policy: type) -> str:
        """How it is made, as Python: `CATPolicy.published()`, `AttentionRankPolicy(staleness=1.0)`."""
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{policy.__name__}{f'.{self.maker}' if self.maker else ''}({settings})"


@dataclass(frozen=True)
class Description:
    """A policy in the table of docs/policies.md, and its variants.

    Attributes:
        idea: what it chooses, in some words.
        source: the paper.
        cost: of a selection, beside one sort of N numbers.
        needs: where that is up to other policies; else it follows from the class's own `needs`.
        variants: none for a policy that means nothing by itself.
    """

    idea: str
    source: str
    cost: str
    needs: str = ""
    variants: tuple[Variant, ...] = ()
