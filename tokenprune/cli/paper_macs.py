"""The operations of the CAT Pruning paper's tables, counted again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from tokenprune.cli.options import TERA
from tokenprune.engine.call_arguments import Given
from tokenprune.macs.counting import count_layers, with_a_whole_block
from tokenprune.registry import find_adapter
from tokenprune.schedule import Step, WarmupSchedule

PAPER_ALPHA, PAPER_WARMUP = 0.3, 8
PAPER = {  # Cheng, Chen, Jia, arXiv 2502.00433: MACs (T), dense, CAT Pruning and AT-EDM, by model and steps
    ("SD3-medium", 28): (168.28, 90.28, 93.48),
    ("SD3-medium", 50): (300.50, 136.70, 143.42),
    ("PixArt-Sigma", 28): (120.68, 60.08, 62.08),
    ("PixArt-Sigma", 50): (215.40, 88.24, 92.44),
}


@dataclass(frozen=True)
class PaperRow:
    """One model at one number of steps; `_T` is tera (10^12) multiply-accumulate operations.

    `at_edm` is CAT Pruning's schedule with one block of all tokens at each pruned step, see `with_a_whole_block`.
    """

    model: str
    steps: int
    linear_dense_T: float
    linear_pruned_T: float
    linear_at_edm_T: float
    total_dense_T: float
    total_pruned_T: float
    total_at_edm_T: float
    ideal_speedup: float
    paper_dense_T: float | None
    paper_pruned_T: float | None
    paper_at_edm_T: float | None


def _count(name: str, model: nn.Module, arguments: Given, schedule: WarmupSchedule, steps: list[int]) -> list[PaperRow]:
    module_map = find_adapter(model)(model)
    tokens = torch.Size(module_map.grid(arguments[1])).numel()
    pruned_tokens = schedule.count(Step(schedule.warmup_steps, 0.0, 0.0, None), tokens)
    full, by_count = count_layers(model, module_map, arguments, [pruned_tokens])
    pruned = by_count[pruned_tokens]
    ranked = with_a_whole_block(full, pruned, module_map.block_sites[0].path)
    rows = []
    for number in steps:
        pruned_steps = max(0, number - schedule.warmup_steps) if pruned_tokens < tokens else 0
        dense, before = full[""] * number, full[""] * (number - pruned_steps)
        ours, at_edm = before + pruned[""] * pruned_steps, before + ranked * pruned_steps
        of_paper = schedule == WarmupSchedule(PAPER_ALPHA, PAPER_WARMUP)
        paper = PAPER.get((name, number), (None,) * 3) if of_paper else (None,) * 3
        rows.append(
            PaperRow(
                model=name,
                steps=number,
                linear_dense_T=dense.linear / TERA,
                linear_pruned_T=ours.linear / TERA,
                linear_at_edm_T=at_edm.linear / TERA,
                total_dense_T=dense.total / TERA,
                total_pruned_T=ours.total / TERA,
                total_at_edm_T=at_edm.total / TERA,
                ideal_speedup=dense.total / ours.total,
                paper_dense_T=paper[0],
                paper_pruned_T=paper[1],
                paper_at_edm_T=paper[2],
            )
        )
    return rows


def _table(rows: list[PaperRow], schedule: WarmupSchedule) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"Tera MACs of one image, 1024x1024, alpha {schedule.alpha}, {schedule.warmup_steps} full steps",
        caption="linear: linear layers, as in arXiv 2502.00433; all: with attention products; allowed: speed "
        "ratio that all MACs allow; AT-EDM: one block of all tokens at each pruned step (docs/cat.md)",
        min_width=74,
    )
    for column in ("model", "steps", "method", "linear", "paper", "all", "allowed"):
        table.add_column(column, justify="left" if column in ("model", "method") else "right", no_wrap=True)
    for row in rows:
        methods = (
            ("dense", row.linear_dense_T, row.paper_dense_T, row.total_dense_T),
            ("CAT", row.linear_pruned_T, row.paper_pruned_T, row.total_pruned_T),
            ("AT-EDM", row.linear_at_edm_T, row.paper_at_edm_T, row.total_at_edm_T),
        )
        for place, (method, linear, paper, total) in enumerate(methods):
            table.add_row(
                "" if place else row.model,
                "" if place else str(row.steps),
                method,
                f"{linear:.2f}",
                _figure(paper),
                f"{total:.2f}",
                f"{row.total_dense_T / total:.3f}x",
            )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _build(name: str) -> tuple[nn.Module, Given]:
    """A model of the paper on the meta device, and the arguments of a call with both halves of guidance, 1024x1024."""
    from tokenprune.bench.subjects.random_weights import SHAPES

    with torch.device("meta"):
        model: Any = SHAPES[name].build()
        latents = torch.empty(2, model.config.in_channels, 128, 128)
        arguments = {"hidden_states": latents, "timestep": torch.empty(2), **SHAPES[name].conditions(2)}
    return model, ((), arguments)


MODELS = {"SD3-medium": "sd3-medium", "PixArt-Sigma": "pixart-sigma"}
"""The paper's models, and what the package calls them."""
