"""Plans that are known to do well."""

from __future__ import annotations

from typing import Any

from tokenprune.errors import UnknownModelError
from tokenprune.plans import Plan
from tokenprune.policies import ErrorControlledPolicy
from tokenprune.registry import find_adapter, transformer_of
from tokenprune.schedule import BudgetSchedule
from tokenprune.taylor import Taylor

PRESETS = {"quality": 0.6, "balanced": 0.5, "fast": 0.35}
"""Shares of the plain model's token computations, by name."""


def plan(target: Any, budget: float | str = "balanced") -> Plan:
    """The schedule, policy and forecast with the best fidelity known for a share of the plain model's cost.

    A warm-up, a full step every few steps, and between them the tokens with the largest expected error; predictions,
    keys and values of all others are forecast. Found on the tuning captions of the embedded models; docs/analysis.md
    compares it with all else on captions that were not used for that. Other models may have other optima.

        handle = tokenprune.apply(pipe, tokenprune.plan(pipe, budget=0.5))

    Args:
        target: the transformer, or a pipeline that holds it as `transformer`.
        budget: share of the plain model's token computations, above 0 up to 1; or "quality" (0.6), "balanced" (0.5)
            or "fast" (0.35).

    Raises:
        UnknownModelError: no adapter serves the model, and it cannot be discovered.
        ValueError: the budget is neither a share nor a preset's name.
    """
    model = transformer_of(target)
    try:
        find_adapter(model)
    except UnknownModelError:
        from tokenprune.discovery import may_be_discovered

        if not may_be_discovered(model):
            raise
    return best_plan(share_of(budget))


def share_of(budget: float | str) -> float:
    """The share of token computations that a preset's name stands for; a share as it is."""
    if isinstance(budget, str):
        if budget not in PRESETS:
            raise ValueError(f"budget: expected a share or one of {', '.join(PRESETS)}, got {budget!r}")
        return PRESETS[budget]
    return budget


def best_plan(budget: float) -> Plan:
    """What `plan` gives for a share of the plain model's token computations."""
    return Plan(ErrorControlledPolicy(), BudgetSchedule(budget), Taylor(order=1, keys=True))
