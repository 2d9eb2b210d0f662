"""Plans that are known to do well."""

from __future__ import annotations

from tokenprune.placement import PlacedSchedule
from tokenprune.plans.plan import Plan
from tokenprune.policies import DensePolicy, ErrorControlledPolicy
from tokenprune.reuse.corrector import Corrector
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import BudgetSchedule

PRESETS = {"quality": 0.6, "balanced": 0.5, "fast": 0.35}
"""Shares of the plain model's token computations, by name."""


def share_of(budget: float | str) -> float:
    """The share of token computations that a preset's name stands for; a share as it is."""
    if isinstance(budget, str):
        if budget not in PRESETS:
            raise ValueError(f"budget: expected a share or one of {', '.join(PRESETS)}, got {budget!r}")
        return PRESETS[budget]
    return budget


def best_plan(budget: float, skips: bool = True) -> Plan:
    """What `plan` gives for a share of the plain model's cost."""
    if skips:
        return Plan(DensePolicy(), PlacedSchedule(budget), Taylor(order=1), Corrector())
    return Plan(ErrorControlledPolicy(), BudgetSchedule(budget), Taylor(order=1, keys=True))
