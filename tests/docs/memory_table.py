"""The table of docs/memory.md: what plans keep on models of full size, reckoned on torch's meta device.

python tests/docs/memory_table.py          # print the table
python tests/docs/memory_table.py --write  # put it into the page
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import tokenprune
from tokenprune.bench.subjects.transformers import load
from tokenprune.bench.tables.cells import renew
from tokenprune.cli.targets import call_of, find_map
from tokenprune.macs.example_calls import Wanted
from tokenprune.macs.rehearsal import rehearse
from tokenprune.plans.plan import Plan

PAGE = Path(tokenprune.__file__).parents[1] / "docs" / "memory.md"
MARK = "memory"
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
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
STEPS, DTYPE = 28, torch.bfloat16


def size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def row(name: str) -> str:
    """Weights and caches in bfloat16, at the size that the pipeline draws by default."""
    loaded = load(name)
    found = find_map(loaded).map
    called = call_of(loaded, Wanted())
    assert called is not None
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    plans = (
        tokenprune.plan(loaded.model),
        Plan(tokenprune.CATPolicy()),
        tokenprune.plan(loaded.model, skips=False),
    )
    rehearsals = [rehearse(loaded.model, found, called.call, plan, STEPS, DTYPE) for plan in plans]
    cells = [
        f"`{name}`",
        f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.0f} million",
        called.size,
        f"{rehearsals[0].tokens:,} + {called.text} text",
        GUIDANCE[called.guidance],
        size(parameters * DTYPE.itemsize),
        *(size(rehearsal.cache_bytes) for rehearsal in rehearsals),
    ]
    return f"| {' | '.join(cells)} |"


def table(names: tuple[str, ...] = MODELS) -> str:
    return "\n".join([HEADER, *map(row, names), ""])


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        renew(PAGE, MARK, table())
    else:
        print(table(), end="")
