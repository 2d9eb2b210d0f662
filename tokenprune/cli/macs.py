"""`tokenprune macs`: operations of a model, or of the paper's models, next to the paper's figures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from tokenprune.calls import Given
from tokenprune.cli import options
from tokenprune.cli.model_macs import report
from tokenprune.cli.models import Wanted, at_least, load, plan_of
from tokenprune.cli.refusals import refusing
from tokenprune.errors import ConfigurationError
from tokenprune.macs import count_steps
from tokenprune.registry import find_adapter
from tokenprune.schedule import Step, WarmupSchedule

TERA = 1e12
PAPER_ALPHA, PAPER_WARMUP = 0.3, 8
PAPER = {  # Cheng, Chen, Jia, arXiv 2502.00433: MACs (T) of linear layers, dense and CAT Pruning, by model and steps
    ("SD3-medium", 28): (168.28, 90.28),
    ("SD3-medium", 50): (300.50, 136.70),
    ("PixArt-Sigma", 28): (120.68, 60.08),
    ("PixArt-Sigma", 50): (215.40, 88.24),
}


@dataclass(frozen=True)
class Row:
    """One model at one number of steps; `_T` is tera (10^12) multiply-accumulate operations."""

    model: str
    steps: int
    linear_dense_T: float
    linear_pruned_T: float
    total_dense_T: float
    total_pruned_T: float
    ideal_speedup: float
    paper_dense_T: float | None
    paper_pruned_T: float | None


def macs(
    model: Annotated[str | None, typer.Argument(help=f"{options.MODEL} None: the paper's two.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Fraction of image tokens at a pruned step: 0.3.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Full steps at the start: 8.")] = None,
    plan: options.PlanFile = None,
    budget: options.Budget = None,
    steps: Annotated[list[int], typer.Option(help="Steps of a generation; may be repeated.")] = [28, 50],  # noqa: B006
    height: options.Height = None,
    width: options.Width = None,
    size: options.Size = None,
    frames: options.Frames = None,
    text: options.Text = None,
    guidance: options.Guidance = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Show modules of a full and a pruned call.")] = False,
    depth: Annotated[int, typer.Option(help="Depth of modules shown: 1 for the model's own.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Count multiply-accumulate operations, dense and pruned, of any model, or of the paper's next to its figures.

    The paper's are SD3-medium and PixArt-Sigma (1024x1024, guidance). A model is pruned as the plan or the budget says,
    else by CAT Pruning with alpha and warmup-steps. Runs on the meta device: no weights, no arithmetic.
    """
    with refusing("macs"):
        at_least(steps=min(steps), depth=depth, height=height, width=width, size=size, frames=frames)
        cat = alpha is not None or warmup_steps is not None or (plan is None and budget is None)
        fraction = PAPER_ALPHA if alpha is None and cat else alpha
        warmup = PAPER_WARMUP if warmup_steps is None and cat else warmup_steps
        wanted = Wanted(height or size, width or size, frames, text, None, guidance)
        if model is not None:
            loaded = load(model)
            chosen = plan_of(loaded.model, plan, budget, fraction, warmup)
            report(loaded, wanted, chosen, steps, depth if per_layer else 0, as_json)
            return
        beside = [name for name, value in (("plan", plan), ("budget", budget), ("per-layer", per_layer)) if value]
        if beside or wanted.given() or guidance:
            named = ", ".join([*beside, *wanted.given(), *(["guidance"] if guidance else [])])
            raise ConfigurationError(f"{named}: expected only with a MODEL; the paper's table has its own settings")
        try:
            schedule = WarmupSchedule(fraction or 0, warmup or 0)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        rows = [row for name, shape in MODELS.items() for row in _count(name, *_build(shape), schedule, steps)]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        Console().print(_table(rows, schedule))


def _count(name: str, model: nn.Module, arguments: Given, schedule: WarmupSchedule, steps: list[int]) -> list[Row]:
    module_map = find_adapter(model)(model)
    tokens = torch.Size(module_map.grid(arguments[1])).numel()
    pruned_tokens = schedule.count(Step(schedule.warmup_steps, 0.0, 0.0, None), tokens)
    full, by_count = count_steps(model, module_map, arguments, [pruned_tokens])
    pruned = by_count[pruned_tokens]
    rows = []
    for number in steps:
        pruned_steps = max(0, number - schedule.warmup_steps) if pruned_tokens < tokens else 0
        dense, ours = full * number, full * (number - pruned_steps) + pruned * pruned_steps
        of_paper = schedule == WarmupSchedule(PAPER_ALPHA, PAPER_WARMUP)
        paper = PAPER.get((name, number), (None, None)) if of_paper else (None, None)
        rows.append(
            Row(
                model=name,
                steps=number,
                linear_dense_T=dense.linear / TERA,
                linear_pruned_T=ours.linear / TERA,
                total_dense_T=dense.total / TERA,
                total_pruned_T=ours.total / TERA,
                ideal_speedup=dense.total / ours.total,
                paper_dense_T=paper[0],
                paper_pruned_T=paper[1],
            )
        )
    return rows


def _table(rows: list[Row], schedule: WarmupSchedule) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"Tera MACs of one image, 1024x1024, alpha {schedule.alpha}, {schedule.warmup_steps} full steps",
        caption="linear: linear layers, as the paper counts; all: with attention products; allowed: speed ratio to the "
        "plain model that all MACs allow; paper: Cheng, Chen, Jia, arXiv 2502.00433",
    )
    columns = (
        "model",
        "steps",
        "linear\ndense",
        "\npaper",
        "linear\npruned",
        "\npaper",
        "all\ndense",
        "all\npruned",
        "\nallowed",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.model,
            str(row.steps),
            f"{row.linear_dense_T:.2f}",
            _figure(row.paper_dense_T),
            f"{row.linear_pruned_T:.2f}",
            _figure(row.paper_pruned_T),
            f"{row.total_dense_T:.2f}",
            f"{row.total_pruned_T:.2f}",
            f"{row.ideal_speedup:.3f}x",
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _build(name: str) -> tuple[nn.Module, Given]:
    """A model of the paper on the meta device, and the arguments of a call with both halves of guidance, 1024x1024."""
    from tokenprune.bench.random_weights import SHAPES

    with torch.device("meta"):
        model: Any = SHAPES[name].build()
        latents = torch.empty(2, model.config.in_channels, 128, 128)
        arguments = {"hidden_states": latents, "timestep": torch.empty(2), **SHAPES[name].conditions(2)}
    return model, ((), arguments)


MODELS = {"SD3-medium": "sd3-medium", "PixArt-Sigma": "pixart-sigma"}
"""The paper's models, and what the package calls them."""
