"""What a bench run compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import tokenprune
from tokenprune.handles import Handle
from tokenprune.plans.plan import Plan
from tokenprune.registry import find_adapter
from tokenprune.targets import target_of


@dataclass(frozen=True)
class Configuration:
    """What draws a picture: the plain model, a plan of ours, or a method of another package.

    Attributes:
        name: unique within a suite.
        plan: how to prune; None does not prune.
        steps: steps of the sampler; None is the number that the bench is run with.
        source: whose method it is; empty for the plain model.
        attach: puts a method of another package on the pipeline, for as long as its context lasts.
        compiled: whether every block of the transformer is compiled.
        cache_dtype: what a plan of ours keeps keys and values in; None is the model's own type.
    """

    name: str
    plan: Plan | None = None
    steps: int | None = None
    source: str = ""
    attach: Callable[[Any], AbstractContextManager[None]] | None = None
    compiled: bool = False
    cache_dtype: torch.dtype | None = None

    @contextmanager
    def on(self, pipe: Any) -> Iterator[Handle | None]:
        """The pipeline with this configuration for as long as the context lasts; gives the handle of a plan of ours."""
        with ExitStack() as stack:
            if self.compiled:
                stack.enter_context(compiled_blocks(pipe))
            if self.attach is not None:
                stack.enter_context(self.attach(pipe))
            handle = None
            if self.plan is not None:
                handle = stack.enter_context(tokenprune.apply(pipe, self.plan, cache_dtype=self.cache_dtype))
            yield handle


@contextmanager
def compiled_blocks(pipe: Any) -> Iterator[None]:
    """Every block of the transformers compiled by itself, as docs/speed.md recommends, for as long as it lasts."""
    models = target_of(pipe).models.values()
    blocks = [model.get_submodule(site.path) for model in models for site in find_adapter(model)(model).block_sites]
    for block in blocks:
        block.compile(fullgraph=True)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch.compiler.reset()


def plain(steps: int) -> Configuration:
    """The plain model with another number of steps."""
    return Configuration(f"plain, {steps} steps", steps=steps)
