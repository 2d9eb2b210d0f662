"""The operations of the CAT Pruning paper's tables (Cheng, Chen, Jia, arXiv 2502.00433), counted again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokenprune.bench.configurations.schedules import PAPER
from tokenprune.bench.subjects.random_weights import SHAPES
from tokenprune.engine.call_arguments import Given
from tokenprune.macs.breakdown import TERA
from tokenprune.macs.counting import count_layers, with_a_whole_block
from tokenprune.registry import find_adapter
from tokenprune.schedule import Step, WarmupSchedule

MODELS = {"SD3-medium": "sd3-medium", "PixArt-Sigma": "pixart-sigma"}
"""The paper's models, and what the package calls them."""


FIGURES = {
    ("SD3-medium", 28): (168.28, 90.28, 93.48),
    ("SD3-medium", 50): (300.50, 136.70, 143.42),
    ("PixArt-Sigma", 28): (120.68, 60.08, 62.08),
    ("PixArt-Sigma", 50): (215.40, 88.24, 92.44),
}
"""The paper's, by model and steps: tera operations of linear layers, dense, by CAT Pruning and by AT-EDM."""


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


def paper_rows(schedule: WarmupSchedule, steps: Sequence[int]) -> list[PaperRow]:
    """Operations of one image, 1024 x 1024 with guidance, by both models at each number of steps.

    The paper's figures are beside them where schedule and steps are the paper's.
    """
    return [row for name in MODELS for row in _rows(name, schedule, steps)]


def _rows(name: str, schedule: WarmupSchedule, steps: Sequence[int]) -> list[PaperRow]:
    model, arguments = _built(MODELS[name])
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
        paper = FIGURES.get((name, number), (None,) * 3) if schedule == PAPER else (None,) * 3
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


def _built(shape: str) -> tuple[nn.Module, Given]:
    """A model on the meta device, and the arguments of a call with both halves of guidance, 1024 x 1024."""
    with torch.device("meta"):
        model: Any = SHAPES[shape].build()
        latents = torch.empty(2, model.config.in_channels, 128, 128)
        arguments = {"hidden_states": latents, "timestep": torch.empty(2), **SHAPES[shape].conditions(2)}
    return model, ((), arguments)
