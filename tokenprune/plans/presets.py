"""Plans that are known to do well."""

from __future__ import annotations

from tokenprune.placement import PlacedSchedule
from tokenprune.plans.plan import Plan
from tokenprune.policies import DensePolicy, ErrorControlledPolicy
from tokenprune.reuse.corrector import Corrector
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import BudgetSchedule

PRESETS = {"quality": 0.6, "balanced": 0.5, "fast": 0.35}
"""Shares of the plain model's cost, by name."""


def share_of(budget: float | str) -> float:
    """The share that a preset's name stands for; a share as it is."""
    if isinstance(budget, str):
        if budget not in PRESETS:
            raise ValueError(f"budget: expected a share or one of {', '.join(PRESETS)}, got {budget!r}")
        return PRESETS[budget]
    return budget


def best_plan(cost: float) -> Plan:
    """What `plan` gives for a share of the plain model's operations: full steps, and skipped ones between."""
    return Plan(DensePolicy(), PlacedSchedule(cost), Taylor(order=1), Corrector())


def token_plan(budget: float) -> Plan:
    """What `plan` gives for a share of the plain model's token computations where no step may be skipped."""
    return Plan(ErrorControlledPolicy(), BudgetSchedule(budget), Taylor(order=1, keys=True))
