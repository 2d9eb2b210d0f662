"""The ways of asking for pruning that the page offers, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tokenprune
from tokenprune.plans.plan import Plan
from tokenprune.policies.base import SelectionPolicy


@dataclass(frozen=True)
class Method:
    """One way of asking for pruning.

    Attributes:
        name: what the page calls it.
        meaning: what its number is.
        usual: number to begin with.
        make: what to give `tokenprune.apply`, of the pipeline, the number and the full steps at the start.
        code: the same as Python, with `{value}` and `{full_steps}` to be filled in.
        warms_up: whether it takes full steps at the start.
    """

    name: str
    meaning: str
    usual: float
    make: Callable[[Any, float, int], Plan | SelectionPolicy]
    code: str
    warms_up: bool = False


METHODS = {
    method.name: method
    for method in (
        Method(
            "speed-up",
            "how many times fewer operations than the plain model",
            2.0,
            lambda pipe, value, _: tokenprune.plan(pipe, speedup=value),
            "tokenprune.plan(pipe, speedup={value})",
        ),
        Method(
            "budget",
            "share of the plain model's operations",
            0.5,
            lambda pipe, value, _: tokenprune.plan(pipe, macs=value),
            "tokenprune.plan(pipe, macs={value})",
        ),
        Method(
            "CAT",
            "alpha: share of the image tokens that a pruned step computes",
            0.3,
            lambda _, value, full_steps: tokenprune.CATPolicy(alpha=value, warmup_steps=full_steps),
            "tokenprune.CATPolicy(alpha={value}, warmup_steps={full_steps})",
            warms_up=True,
        ),
    )
}
"""By name; the first is what the page begins with."""
