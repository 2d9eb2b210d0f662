"""What a bench run compares."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.plans import Plan


@dataclass(frozen=True)
class Configuration:
    """One way of drawing.

    Attributes:
        name: unique within a suite.
        plan: how to prune; None is the plain model.
        steps: steps of the sampler; None is the number that the bench is run with.
        source: whose method it is; empty for the plain model.
    """

    name: str
    plan: Plan | None = None
    steps: int | None = None
    source: str = ""


def plain(steps: int) -> Configuration:
    """The plain model with another number of steps."""
    return Configuration(f"plain, {steps} steps", steps=steps)
