"""What a bench run compares."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import tokenprune
from tokenprune.api import Handle
from tokenprune.plans import Plan


@dataclass(frozen=True)
class Configuration:
    """One way of drawing: the plain model, a plan of ours, or a method of another package.

    Attributes:
        name: unique within a suite.
        plan: how to prune; None does not prune.
        steps: steps of the sampler; None is the number that the bench is run with.
        source: whose method it is; empty for the plain model.
        attach: puts a method of another package on the pipeline, for as long as its context lasts.
    """

    name: str
    plan: Plan | None = None
    steps: int | None = None
    source: str = ""
    attach: Callable[[Any], AbstractContextManager[None]] | None = None

    def on(self, pipe: Any) -> AbstractContextManager[Handle | None]:
        """The pipeline drawing this way for as long as the context lasts; gives the handle of a plan of ours."""
        if self.plan is not None:
            return tokenprune.apply(pipe, self.plan)
        return nullcontext() if self.attach is None else self.attach(pipe)


def plain(steps: int) -> Configuration:
    """The plain model with another number of steps."""
    return Configuration(f"plain, {steps} steps", steps=steps)
