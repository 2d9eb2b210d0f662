"""What a step costs beside the least that it could: `python -m tokenprune.bench.studies.step_costs`.

The least is the plain model itself on a picture of as many tokens as the step computes: its blocks on those tokens, and
nothing of the engine. Processor time is measured in turns; operators are counted, and are the same on any machine.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer

import tokenprune
from tokenprune.bench.commands import run
from tokenprune.bench.measuring.kernels import counting_kernels
from tokenprune.bench.measuring.speed import median_and_spread
from tokenprune.bench.subjects.pipelines import find_subject
from tokenprune.bench.subjects.random_weights import PIXELS_PER_LATENT
from tokenprune.embedded.load import quiet
from tokenprune.errors import ConfigurationError
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import best_plan, token_plan
from tokenprune.policies import CATPolicy, DensePolicy
from tokenprune.registry import find_adapter

CONFIGURATIONS: dict[str, Plan] = {
    "CAT": Plan(CATPolicy(0.3)),
    "tokenprune.plan": best_plan(0.5),
    "tokenprune.plan, skips=False": token_plan(0.5),
}

HEADER = """| | step | tokens | operators a block | outside | ms | least, ms | above it |
|---|---|---|---|---|---|---|---|"""

Kind = tuple[str, int]
"""Full, pruned or skipped, and the computed tokens."""

PIXELS = 8
"""Of what pipelines ask height and width to be multiples."""

STEPS = 14
"""Of each generation; what the first two of each kind of step cost is left out."""


class Drawn:
    """A pipeline, drawn from at any size.

    Args:
        model: its name, as `bench --model` takes it.
        dtype: of its weights.
        size: height and width in pixels; None is its own.

    Attributes:
        pipe: the pipeline.
        blocks: paths of the transformer's blocks.
        grid: rows and columns of tokens of its pictures.
    """

    def __init__(self, model: str, dtype: str, size: int | None) -> None:
        subject = find_subject(model, dtype)
        self._given = {**subject.arguments, "guidance_scale": subject.guidance_scale, "output_type": "latent"}
        self.pipe = subject.load()
        self.pipe.set_progress_bar_config(disable=True)
        transformer = self.pipe.transformer
        self.blocks = tuple(site.path for site in find_adapter(transformer)(transformer).block_sites)
        if size is None and (size := self._given.get("height")) is None:
            latents = getattr(transformer.config, "sample_size", None)
            if latents is None:
                raise ConfigurationError(f"size: expected one, as {type(transformer).__name__} says none of its own")
            size = latents * getattr(self.pipe, "vae_scale_factor", PIXELS_PER_LATENT)
        side = math.isqrt(self._tokens(size))
        self._pixels = size // side
        self._multiple = max(1, PIXELS // self._pixels)
        self.grid = (side, side)

    def _tokens(self, size: int) -> int:
        """How many tokens a square picture of so many pixels has."""
        with tokenprune.apply(self.pipe, DensePolicy()) as handle:
            self.pipe(["a red circle"], num_inference_steps=1, **{**self._given, "height": size, "width": size})
            return handle.report().steps[0].tokens

    def of_tokens(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of a picture of so many tokens, or of the next fewer that the pipeline draws."""
        return rectangle(tokens, 2 * max(self.grid), self._multiple)

    def draw(self, grid: tuple[int, int], steps: int) -> None:
        """Draw a picture with so many rows and columns of tokens."""
        height, width = (self._pixels * extent for extent in grid)
        generator = torch.Generator().manual_seed(0)
        given = {**self._given, "height": height, "width": width, "generator": generator}
        self.pipe(["a red circle"], num_inference_steps=steps, **given)


@dataclass(frozen=True)
class Cost:
    """One kind of step of one configuration.

    Attributes:
        configuration: its name.
        kind: full, pruned or skipped.
        tokens: computed image tokens of each image.
        per_block: operators of a block, mean.
        outside: operators outside of the blocks.
        seconds: processor time of a step, median.
        spread: interquartile range of that.
        least: processor time of the plain model on as many tokens; None where nothing is computed.
    """

    configuration: str
    kind: str
    tokens: int
    per_block: float
    outside: int
    seconds: float
    spread: float
    least: float | None

    @property
    def overhead(self) -> float | None:
        """By how much it takes longer than the least, as a share of that."""
        return None if not self.least else self.seconds / self.least - 1


def main(
    model: Annotated[str, typer.Option(help="As of `tokenprune bench`.")] = "shapes-sd3",
    size: Annotated[int | None, typer.Option(help="Height and width in pixels; else the model's own.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    turns: Annotated[int, typer.Option(min=1, help="Generations of each configuration.")] = 3,
) -> None:
    """Print a Markdown table: operators, processor time and the least of it, for each kind of step."""
    quiet()
    print(HEADER)
    for cost in costs(Drawn(model, dtype, size), turns):
        print(f"| {' | '.join(cells(cost))} |")


def cells(cost: Cost) -> tuple[str, ...]:
    """The cells of one row."""
    time_taken = f"{1e3 * cost.seconds:.1f} ({1e3 * cost.spread:.1f})"
    least = "-" if cost.least is None else f"{1e3 * cost.least:.1f}"
    above = "-" if cost.overhead is None else f"{cost.overhead:+.0%}"
    tokens, kernels = str(cost.tokens), (f"{cost.per_block:.0f}", str(cost.outside))
    return cost.configuration, cost.kind, tokens, *kernels, time_taken, least, above


def costs(given: Drawn, turns: int) -> Iterator[Cost]:
    """Every kind of step of every configuration, the plain model's first."""
    kernels = {name: operators(given, plan) for name, plan in CONFIGURATIONS.items()}
    sizes = sorted({tokens for kinds in kernels.values() for _, tokens in kinds if tokens})
    plain: dict[int, list[float]] = defaultdict(list)
    pruned: dict[tuple[str, Kind], list[float]] = defaultdict(list)
    for _ in range(turns):
        for tokens in sizes:
            with _clock(given) as seconds:
                given.draw(given.of_tokens(tokens), 4)
            plain[tokens] += seconds[2:]
        for name, plan in CONFIGURATIONS.items():
            with tokenprune.apply(given.pipe, plan) as handle, _clock(given) as seconds:
                given.draw(given.grid, STEPS)
                kinds = _kinds(handle, len(seconds))
            for place, found in enumerate(kinds):
                if kinds[:place].count(found) >= 2:
                    pruned[name, found].append(seconds[place])
    with counting_kernels(given.pipe.transformer, given.blocks) as calls:
        given.draw(given.grid, 3)
    whole = max(sizes)
    median, spread = median_and_spread(plain[whole])
    yield Cost("plain model", "full", whole, calls[-1].per_block, calls[-1].outside, median, spread, median)
    for (name, (kind, tokens)), taken in pruned.items():
        median, spread = median_and_spread(taken)
        per_block, outside = kernels[name][kind, tokens]
        least = median_and_spread(plain[tokens])[0] if tokens else None
        yield Cost(name, kind, tokens, per_block, outside, median, spread, least)


def operators(given: Drawn, plan: Plan) -> dict[Kind, tuple[float, int]]:
    """Of the last step of each kind: those of a block, mean, and those outside of all blocks."""
    with tokenprune.apply(given.pipe, plan) as handle:
        given.draw(given.grid, STEPS)  # the first generation makes its memory
        with counting_kernels(given.pipe.transformer, given.blocks) as calls:
            given.draw(given.grid, STEPS)
        return {
            kind: (call.per_block, call.outside) for kind, call in zip(_kinds(handle, len(calls)), calls, strict=True)
        }


def _kinds(handle: tokenprune.Handle, calls: int) -> list[Kind]:
    """Kind and tokens of each call; a step has one."""
    steps = handle.report().steps
    if len(steps) != calls:
        raise RuntimeError(f"expected one call of the model for each of {len(steps)} steps, got {calls}")
    return [(step.kind, step.tokens) for step in steps]


@contextmanager
def _clock(given: Drawn) -> Iterator[list[float]]:
    """Processor time of each call of the model within, its hooks included."""
    model, seconds, begun = given.pipe.transformer, [], [0.0]

    def begin(*_: Any) -> None:
        begun[0] = time.process_time()

    def end(*_: Any) -> None:
        seconds.append(time.process_time() - begun[0])

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin, prepend=True).remove)
        stack.callback(model.register_forward_hook(end).remove)
        yield seconds


def rectangle(tokens: int, most: int, multiple: int = 1) -> tuple[int, int]:
    """The squarest rectangle of so many tokens, or of the next fewer.

    Args:
        tokens: how many.
        most: no side is longer.
        multiple: both sides are multiples of this.
    """
    for area in range(tokens, 0, -1):
        for rows in range(math.isqrt(area), 0, -1):
            columns = area // rows
            if rows * columns == area and columns <= most and not (rows % multiple or columns % multiple):
                return rows, columns
    raise ValueError(f"tokens: expected at least {multiple**2}, got {tokens}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main, "tokenprune.bench.studies.step_costs")
