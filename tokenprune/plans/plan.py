"""Plans: a schedule, a policy and a forecast that go together."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenprune.policies.base import SelectionPolicy
from tokenprune.reports.html import facts, in_short
from tokenprune.reuse.base import Hold, Reuse
from tokenprune.reuse.corrector import Corrector
from tokenprune.schedule import Schedule
from tokenprune.setting_types import Settings


@dataclass(frozen=True)
class Plan(Settings):
    """How many tokens each step computes, which, what the others become, and how that is made good.

    `apply` takes it for a policy.

    Attributes:
        policy: which tokens each step computes.
        schedule: how many; None takes the policy's own.
        reuse: what the predictions of all other tokens become.
        corrector: how their effect on the latents is made good later; None leaves it.
    """

    policy: SelectionPolicy
    schedule: Schedule | None = None
    reuse: Reuse = field(default_factory=Hold)
    corrector: Corrector | None = None

    def _repr_html_(self) -> str:
        schedule = "the policy's own" if self.schedule is None else in_short(self.schedule)
        corrector = "none" if self.corrector is None else in_short(self.corrector)
        rows = [("policy", in_short(self.policy)), ("schedule", schedule), ("reuse", in_short(self.reuse))]
        return facts("Plan", [*rows, ("corrector", corrector)])
