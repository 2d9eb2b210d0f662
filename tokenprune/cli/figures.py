"""`tokenprune figures`: the paper's figures, drawn from traces of an embedded model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tokenprune.bench.commands import check_known
from tokenprune.bench.configurations.schedules import PAPER
from tokenprune.bench.figures import FIGURES, find_figure
from tokenprune.cli import options
from tokenprune.cli.progress import Progress
from tokenprune.embedded.load import EMBEDDED, quiet
from tokenprune.reports.outputs import check_output

NUMBERS = "figures.json"
*_MOST, _LAST = FIGURES


def figures(
    out: Annotated[Path, typer.Option(help=f"Folder to write PNG files and {NUMBERS} to.")] = Path("out/figures"),
    only: Annotated[
        list[str] | None, typer.Option(help=f"One figure: {', '.join(_MOST)} or {_LAST}; may be repeated.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy of your own to show beside the package's, module.path:Class or an entry point's name; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option(help=f"Embedded pipeline: {' or '.join(EMBEDDED)}.")] = "shapes-sd3",
    prompt: Annotated[str, typer.Option(help="What to draw.")] = options.PROMPT,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 28,
    warmup_steps: Annotated[int, typer.Option(help="Full steps at the start.")] = PAPER.warmup_steps,
    alpha: Annotated[float, typer.Option(help="Fraction of image tokens computed at a pruned step.")] = PAPER.alpha,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Draw the CAT Pruning paper's figures on an embedded model, and write the numbers they show as JSON."""
    names = list(dict.fromkeys(only or FIGURES))
    check_known("only", names, FIGURES)
    check_known("model", [model], EMBEDDED)
    check_output("out", out / NUMBERS)
    import torch

    from tokenprune.bench.figures.canvas import save
    from tokenprune.bench.figures.runs import Runs, Settings
    from tokenprune.bench.figures.strategies import own_strategies
    from tokenprune.plans.data import find_part
    from tokenprune.policies.base import SelectionPolicy

    with options.refusing_values():
        settings = Settings(prompt, steps, warmup_steps, alpha, seed, guidance_scale)
        own = own_strategies([find_part(SelectionPolicy, name, "policy") for name in policy or ()], settings)
    quiet()
    out.mkdir(parents=True, exist_ok=True)
    source = EMBEDDED[model]
    pipe = source.load()
    pipe.set_progress_bar_config(disable=True)
    runs = Runs(pipe, settings, source.arguments, own)
    table = Table("figure", "kB", "what comes out", box=SIMPLE_HEAD, padding=0)
    numbers: dict[str, Any] = {}
    with Progress(len(names)) as progress:
        for name in names:
            progress.begin(f"figure {name}")
            plot = find_figure(name)(runs)
            file = out / f"{name}.png"
            save(plot.figure, file)
            numbers[name] = plot.numbers
            table.add_row(file.name, f"{file.stat().st_size / 1000:.0f}", plot.summary)
    known = {
        "model": model,
        **asdict(settings),
        **({"policies": policy} if policy else {}),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    content = {"settings": known, "figures": numbers}
    (out / NUMBERS).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    if as_json:
        options.print_json({**content, "folder": str(out), "files": [*(f"{name}.png" for name in names), NUMBERS]})
        return
    Console().print(table)
    print(f"written to {out}, with the numbers in {NUMBERS}")
