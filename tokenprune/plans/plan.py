"""Plans: a schedule, a policy and a forecast that go together."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenprune.policies.base import SelectionPolicy
from tokenprune.reuse.base import Hold, Reuse
from tokenprune.schedule import Schedule
from tokenprune.setting_types import Settings


@dataclass(frozen=True)
class Plan(Settings):
    """How many tokens each step computes, which, and what the others become; `apply` takes it for a policy.

    Attributes:
        policy: which tokens each step computes.
        schedule: how many; None takes the policy's own.
        reuse: what the predictions of all other tokens become.
    """

    policy: SelectionPolicy
    schedule: Schedule | None = None
    reuse: Reuse = field(default_factory=Hold)
