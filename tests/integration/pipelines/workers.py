"""What other processes do for tests/integration/test_processes.py: spawned ones import it by name."""

from __future__ import annotations

from typing import Any

import small
from diffusers import DiffusionPipeline
from torch import Tensor, nn

import tokenprune
from tokenprune import Plan, Report, SelectionPolicy


def draw_here(make: str, policy: SelectionPolicy | Plan) -> tuple[Tensor, Report]:
    """Latents, and what they cost, of a pipeline that is made, pruned and used in this process."""
    pipe = getattr(small, make)()
    with tokenprune.apply(pipe, policy) as handle:
        return small.draw(pipe), handle.report()


def leftovers(model: nn.Module) -> list[str]:
    """What hangs on a model's modules: hooks, and attributes of tokenprune."""
    found = []
    for path, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        found += [f"{path}: {hook}" for kind in hooks for hook in kind.values()]
        found += [f"{path}: {name}" for name in module.__dict__ if "tokenprune" in name or name == "__reduce_ex__"]
    return found


def draw_with(pipe: DiffusionPipeline, policy: SelectionPolicy | Plan) -> tuple[list[str], Tensor, Tensor]:
    """What hangs on the transformer that arrived, and its latents as it is and pruned here."""
    found, plain = leftovers(pipe.transformer), small.draw(pipe)
    with tokenprune.apply(pipe, policy):
        return found, plain, small.draw(pipe)


def draw_with_model(make: str, model: nn.Module, policy: SelectionPolicy | Plan) -> tuple[list[str], Tensor, Tensor]:
    """The same for a transformer that was sent alone."""
    pipe = getattr(small, make)()
    pipe.register_modules(transformer=model)
    return draw_with(pipe, policy)


def ignore(_: Any) -> None:
    """Take what was sent."""
