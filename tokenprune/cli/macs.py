"""`tokenprune macs`: operations of the paper's models, next to the paper's figures."""

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

from tokenprune.macs import Arguments, count_steps
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
    alpha: Annotated[float, typer.Option(help="Fraction of image tokens computed at a pruned step.")] = PAPER_ALPHA,
    warmup_steps: Annotated[int, typer.Option(help="Full steps at the start.")] = PAPER_WARMUP,
    steps: Annotated[list[int], typer.Option(help="Steps of a generation; may be repeated.")] = [28, 50],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Count the operations of SD3-medium and PixArt-Sigma (1024x1024, guidance), dense and pruned.

    Runs on the meta device: no weights, no arithmetic.
    """
    try:
        schedule = WarmupSchedule(alpha, warmup_steps)
        if min(steps) < 1:
            raise ValueError(f"steps: expected at least 1, got {min(steps)}")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    rows = [row for name, build in MODELS.items() for row in _count(name, *build(), schedule, steps)]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        Console().print(_table(rows, schedule))


def _count(name: str, model: nn.Module, arguments: Arguments, schedule: WarmupSchedule, steps: list[int]) -> list[Row]:
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


def _sd3_medium() -> tuple[nn.Module, Arguments]:
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=192,
        )
        arguments: dict[str, Any] = {
            "hidden_states": torch.empty(2, 16, 128, 128),
            "encoder_hidden_states": torch.empty(2, 333, 4096),
            "pooled_projections": torch.empty(2, 2048),
            "timestep": torch.empty(2),
        }
    return model, ((), arguments)


def _pixart_sigma() -> tuple[nn.Module, Arguments]:
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        model = PixArtTransformer2DModel(
            sample_size=128,
            num_layers=28,
            attention_head_dim=72,
            num_attention_heads=16,
            in_channels=4,
            out_channels=8,
            patch_size=2,
            caption_channels=4096,
            cross_attention_dim=1152,
            use_additional_conditions=False,
        )
        arguments: dict[str, Any] = {
            "hidden_states": torch.empty(2, 4, 128, 128),
            "encoder_hidden_states": torch.empty(2, 300, 4096),
            "encoder_attention_mask": torch.empty(2, 300),
            "timestep": torch.empty(2),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    return model, ((), arguments)


MODELS = {"SD3-medium": _sd3_medium, "PixArt-Sigma": _pixart_sigma}
