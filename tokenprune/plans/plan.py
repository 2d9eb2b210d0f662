"""Plans: a schedule, a policy and a forecast that go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tokenprune.policies.base import SelectionPolicy
from tokenprune.reports.html import facts, in_short
from tokenprune.reuse.base import Hold, Reuse
from tokenprune.reuse.corrector import Corrector
from tokenprune.schedule import Schedule
from tokenprune.setting_types import Settings


@dataclass(frozen=True)
class Plan(Settings):
    """How many tokens each step computes, which, what the others become, and how that is made good.

    `apply` takes it for a policy. One that `tokenprune.plan` made for a model also says, where it is printed or shown
    in a notebook, what it will cost there.

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

    def telling(self, tell: Callable[[], str]) -> Plan:
        """The same plan, which also says this where it is printed."""
        plan = replace(self)
        plan.__dict__["_tell"] = tell
        return plan

    @property
    def _told(self) -> str | None:
        """What is said of the model that the plan was made for; no setting, so that equal plans may differ in it."""
        tell = self.__dict__.get("_tell")
        return None if tell is None else str(tell())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tell"}  # a copy may go elsewhere

    def __str__(self) -> str:
        told = self._told
        return repr(self) if told is None else f"{self!r}\n{told}"

    def _repr_html_(self) -> str:
        schedule = "the policy's own" if self.schedule is None else in_short(self.schedule)
        corrector = "none" if self.corrector is None else in_short(self.corrector)
        rows = [("policy", in_short(self.policy)), ("schedule", schedule), ("reuse", in_short(self.reuse))]
        told = (self._told or "").splitlines()
        return facts("Plan", [*rows, ("corrector", corrector), *(("in advance", line) for line in told)])
