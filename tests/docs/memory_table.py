"""The tables of docs/memory.md: what plans keep and copy on models of full size, reckoned on torch's meta device.

python tests/docs/memory_table.py          # print the tables
python tests/docs/memory_table.py --write  # put them into the page
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import tokenprune
from tokenprune.bench.subjects.transformers import Loaded, load
from tokenprune.bench.tables.cells import renew
from tokenprune.cli.targets import call_of, find_map
from tokenprune.macs.example_calls import ResolvedCall, Wanted
from tokenprune.macs.rehearsal import Rehearsal, rehearse
from tokenprune.plans.plan import Plan

PAGE = Path(tokenprune.__file__).parents[1] / "docs" / "memory.md"
MODELS = (
    "random:sd3-medium",
    "random:pixart-sigma",
    "AuraFlowTransformer2DModel",
    "CogView4Transformer2DModel",
    "FluxTransformer2DModel",
    "ChromaTransformer2DModel",
    "QwenImageTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "WanTransformer3DModel",
)
"""What `tokenprune inspect` takes."""
GUIDANCE = {"batched": "both halves in one call", "separate": "two calls", "none": "one call"}
COLUMNS = (
    *("model", "parameters", "a call", "tokens", "guidance", "weights"),
    *("`plan(pipe)`", "`CATPolicy()`", "`plan(pipe, skips=False)`"),
)
HOST_COLUMNS = (
    *("model", "`CATPolicy()`: on the device", "in host memory", "a step each way"),
    *("`plan(pipe, skips=False)`: on the device", "in host memory", "a step each way"),
)
STEPS, DTYPE = 28, torch.bfloat16


def size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Model:
    """A model and how its pipeline calls it, with weights and caches in bfloat16.

    Attributes:
        name: what `tokenprune inspect` takes.
        loaded: the model, without weights.
        called: the call, at the size that the pipeline draws by default.
    """

    name: str
    loaded: Loaded
    called: ResolvedCall

    @classmethod
    def of(cls, name: str) -> Model:
        loaded = load(name)
        called = call_of(loaded, Wanted())
        assert called is not None
        return cls(name, loaded, called)

    def rehearsed(self, plan: Plan, cache_device: torch.device | None = None) -> Rehearsal:
        model = self.loaded.model
        return rehearse(model, find_map(self.loaded).map, self.called.call, plan, STEPS, DTYPE, cache_device)


def row(model: Model) -> list[str]:
    parameters = sum(parameter.numel() for parameter in model.loaded.model.parameters())
    plans = (
        tokenprune.plan(model.loaded.model),
        Plan(tokenprune.CATPolicy()),
        tokenprune.plan(model.loaded.model, skips=False),
    )
    rehearsals, called = list(map(model.rehearsed, plans)), model.called
    return [
        f"`{model.name}`",
        f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.0f} million",
        called.size,
        f"{rehearsals[0].tokens:,} + {called.text} text",
        GUIDANCE[called.guidance],
        size(parameters * DTYPE.itemsize),
        *(size(rehearsal.cache_bytes) for rehearsal in rehearsals),
    ]


def host_row(model: Model) -> list[str]:
    """With keys and values in host memory; what a pruned step copies to the device it copies back."""
    cells = [f"`{model.name}`"]
    for plan in (Plan(tokenprune.CATPolicy()), tokenprune.plan(model.loaded.model, skips=False)):
        found = model.rehearsed(plan, torch.device("cpu"))
        (each,) = {moved for computed, moved in found.moved.items() if computed.tokens < found.tokens}
        assert each[0] == each[1]
        cells += [size(found.cache_bytes), size(found.host_bytes), size(each[0])]
    return cells


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Model], list[str]]]] = {
    "memory": (COLUMNS, row),
    "host-memory": (HOST_COLUMNS, host_row),
}
"""Columns and rows, by the mark in the page."""


def table(mark: str, names: tuple[str, ...] = MODELS) -> str:
    _, cells = TABLES[mark]
    return "\n".join([header(mark), *(line(cells(Model.of(name))) for name in names), ""])


def header(mark: str) -> str:
    columns, _ = TABLES[mark]
    return f"{line(columns)}\n{'|---' * len(columns)}|"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for mark in TABLES:
        if sys.argv[1:] == ["--write"]:
            renew(PAGE, mark, table(mark))
        else:
            print(table(mark))
