"""Step caches with a linear forecast: what any plan has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.configurations.schedules import refreshes, warm_refreshes
from tokenprune.plans.plan import Plan
from tokenprune.policies import DensePolicy
from tokenprune.reuse.taylor import Taylor

WARMUPS = (2, 4, 8)
"""Full steps at the start, before those that are spread evenly."""


def step_caches(full: int, steps: int, warmups: Sequence[int] = WARMUPS) -> list[Configuration]:
    """With so many full steps: evenly, and after each warm-up that leaves some; none where all steps are full."""
    if full >= steps:
        return []
    share = full / steps
    schedules = {1: refreshes(share, steps), **{warmup: warm_refreshes(share, steps, warmup) for warmup in warmups}}
    return [
        Configuration(f"step cache after {warmup}", Plan(DensePolicy(), schedule, Taylor()))
        for warmup, schedule in schedules.items()
        if schedule is not None
    ]
