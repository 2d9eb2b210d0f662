"""Schedules that meet a budget, a share of the plain model's token computations, in a number of steps."""

from __future__ import annotations

from tokenprune.schedule import ListSchedule, WarmupSchedule

PAPER = WarmupSchedule(0.3, 8)
"""That of the CAT Pruning paper's tables (arXiv 2502.00433), for any number of steps."""


def after_warmup(budget: float, steps: int, warmup_steps: int) -> WarmupSchedule | None:
    """The warm-up schedule whose share of the token computations is the budget; None where the warm-up exceeds it."""
    left = budget * steps - warmup_steps
    return WarmupSchedule(left / (steps - warmup_steps), warmup_steps) if left > 0 else None


def refreshes(budget: float, steps: int) -> ListSchedule:
    """Full steps spread evenly over the generation, nothing between: a step cache of that budget."""
    full = max(2, round(budget * steps))
    places = {round(i * steps / full) for i in range(full)}
    return ListSchedule(tuple(1.0 if i in places else 0.0 for i in range(steps)))


def warm_refreshes(budget: float, steps: int, warmup_steps: int) -> ListSchedule | None:
    """The same after a warm-up; None where the warm-up exceeds the budget."""
    full = round(budget * steps) - warmup_steps
    if full < 1:
        return None
    rest = steps - warmup_steps
    places = {warmup_steps - 1 + round((i + 1) * rest / full) for i in range(full)}
    return ListSchedule(tuple(1.0 if i < warmup_steps or i in places else 0.0 for i in range(steps)))
