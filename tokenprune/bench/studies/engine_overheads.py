"""What the engine's own work takes of a pruned step: `python -m tokenprune.bench.studies.engine_overheads`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from statistics import median
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer

import tokenprune
from tokenprune.bench.commands import check_known, run
from tokenprune.bench.subjects.pipelines import DTYPES
from tokenprune.bench.subjects.random_weights import SHAPES, RandomPipeline
from tokenprune.engine import block_hooks, masked_module
from tokenprune.engine.generation import Generation
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import token_plan
from tokenprune.policies import CATPolicy
from tokenprune.reuse.key_value import KeyValueBuffer
from tokenprune.reuse.linear_key_value import LinearBuffer

PARTS: dict[str, tuple[Any, str]] = {
    "choosing tokens": (Generation, "_select"),
    "gathering rows at the entry": (block_hooks, "gather_first"),
    "writing keys and values, held": (KeyValueBuffer, "update"),
    "writing and moving keys and values, forecast": (LinearBuffer, "update"),
    "completing the prediction": (masked_module.MaskedModule, "complete"),
}
"""What is timed, and where it is."""


CONFIGURATIONS: dict[str, Plan] = {"CAT": Plan(CATPolicy(0.3)), "tokenprune.plan, skips=False": token_plan(0.5)}


STEPS = 12
"""Of each generation; the last ones of a plan are pruned."""


def main(
    model: Annotated[str, typer.Option(help="sd3-medium or pixart-sigma.")] = "sd3-medium",
    layers: Annotated[int, typer.Option(help="Blocks.")] = 2,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 512,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
) -> None:
    """Print a Markdown table: shares of a pruned step on the CPU, medians over the pruned steps of one generation."""
    check_known("model", [model], SHAPES)
    check_known("dtype", [dtype], DTYPES)
    pipe = RandomPipeline(model, layers, dtype=DTYPES[dtype])
    found = {name: shares(pipe, plan, size) for name, plan in CONFIGURATIONS.items()}
    print(f"| share of a pruned step | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for part in PARTS:
        print(f"| {part} | {' | '.join(f'{each[part]:.1%}' for each in found.values())} |")


def shares(pipe: RandomPipeline, plan: Plan, size: int) -> dict[str, float]:
    """What each of PARTS takes of a pruned step's time in the model."""
    spent: list[dict[str, float]] = []
    with ExitStack() as stack:
        handle = stack.enter_context(tokenprune.apply(pipe, plan))
        draw: dict[str, Any] = {"num_inference_steps": STEPS, "height": size, "width": size}
        pipe(["warm-up"], **draw)
        for part, (owner, name) in PARTS.items():
            stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), part, spent)))
        before = pipe.transformer.register_forward_pre_hook(lambda *_: spent.append({}), prepend=True)
        stack.callback(before.remove)
        pipe(["timed"], **draw)
        steps = handle.report().steps
    pruned = [(step, parts) for step, parts in zip(steps, spent, strict=True) if not step.full]
    return {part: median([parts.get(part, 0.0) / step.seconds for step, parts in pruned]) for part in PARTS}


def _timed(function: Callable[..., Any], part: str, spent: list[dict[str, float]]) -> Callable[..., Any]:
    depth = 0

    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        depth += 1
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            depth -= 1
            if depth == 0:  # some call themselves
                spent[-1][part] = spent[-1].get(part, 0.0) + time.perf_counter() - start

    return timed


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main, "tokenprune.bench.studies.engine_overheads")
