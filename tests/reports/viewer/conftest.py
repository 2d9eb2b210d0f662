"""Traces to make pages of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, ListSchedule, NoisePolicy, Selection, SelectionPolicy, Trace, TraceStep
from tokenprune.ops.grid import num_tokens
from tokenprune.reports.report import StepReport
from tokenprune.reports.trace import TokenRecord

STEPS = 7


@pytest.fixture(scope="session")
def traced(make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]) -> dict[str, Trace]:
    """Of real generations on a grid of 4 x 6: CAT with a skipped step, noise with fewer steps, and two images."""
    model = make_model("sd3")

    def draw(policy: SelectionPolicy, steps: int = STEPS, seeds: tuple[int, ...] = (0,), **options: Any) -> Trace:
        with tokenprune.apply(model, policy, trace=True, **options) as handle:
            generate(model, seeds=seeds, steps=steps)
            return handle.trace

    cat = CATPolicy(0.3, 3, num_clusters=5)
    return {
        "CAT": draw(cat, schedule=ListSchedule((1, 1, 0.3, 0.3, 0, 0.3, 0.3))),
        "noise": draw(NoisePolicy(0.3, 3), steps=5),
        "two": draw(cat, seeds=(0, 1)),
    }


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    """Traces on any grid, made up: full steps, pruned ones, no model."""

    def make(grid: tuple[int, ...], images: int = 1, steps: int = 5, labels: tuple[str, ...] = ()) -> Trace:
        tokens, generator, done = num_tokens(grid), torch.Generator().manual_seed(0), []
        age = torch.ones(images, tokens, dtype=torch.int32)
        for step in range(steps):
            count = tokens if step < 2 else max(1, tokens // 4)
            scores = torch.rand(images, tokens, generator=generator)
            selection = None if step < 2 else Selection.top(scores, count)
            sets = {key: torch.randint(0, 9, (images, tokens), generator=generator) for key in labels if selection}
            empty = torch.zeros(images, tokens)
            record = TokenRecord(age.clone(), selection, True, None, empty.unsqueeze(-1), empty, sets)
            report = StepReport(step, 1000.0 - step, count, tokens, selection is None, 0.01, 0.0)
            done.append(TraceStep(report, record))
            age = torch.where(done[-1].computed, 1, age + 1).int()
        return Trace(tuple(done), grid)

    return make


@pytest.fixture(scope="session")
def data_of() -> Callable[[Path], dict[str, Any]]:
    """What a page holds, read back from the file."""

    def read(path: Path) -> dict[str, Any]:
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
        assert found
        return json.loads(found[1])

    return read
