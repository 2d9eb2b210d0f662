"""Plans: a schedule, a policy and a forecast that go together."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenprune.policies.base import SelectionPolicy
from tokenprune.reports.html import facts, in_short
from tokenprune.reuse.base import Hold, Reuse
from tokenprune.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """How many tokens each step computes, which, and what the others become; `apply` takes it for a policy.

    Attributes:
        policy: which tokens each step computes.
        schedule: how many; None takes the policy's own.
        reuse: what the predictions of all other tokens become.
    """

    policy: SelectionPolicy
    schedule: Schedule | None = None
    reuse: Reuse = field(default_factory=Hold)

    def _repr_html_(self) -> str:
        schedule = "the policy's own" if self.schedule is None else in_short(self.schedule)
        return facts(
            "Plan", [("policy", in_short(self.policy)), ("schedule", schedule), ("reuse", in_short(self.reuse))]
        )
