"""`tokenprune figures`: the paper's figures, drawn from traces of the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tokenprune.cli.demo import DEFAULT_PROMPT
from tokenprune.embedded.load import quiet

NUMBERS = "figures.json"


def figures(
    out: Annotated[Path, typer.Option(help="Folder to write PNG files and figures.json to.")] = Path("out/figures"),
    only: Annotated[
        list[str] | None,
        typer.Option(help="One figure: noise, tokens, clusters, strategies, alpha or ages; may be repeated."),
    ] = None,
    model: Annotated[str, typer.Option(help="Embedded pipeline.")] = "shapes-sd3",
    prompt: Annotated[str, typer.Option(help="What to draw.")] = DEFAULT_PROMPT,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 28,
    warmup_steps: Annotated[int, typer.Option(help="Full steps at the start.")] = 8,
    alpha: Annotated[float, typer.Option(help="Fraction of image tokens computed at a pruned step.")] = 0.3,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.")] = 0,
) -> None:
    """Draw the CAT Pruning paper's figures on the embedded model, and write the numbers they show as JSON."""
    from tokenprune.bench.figures import FIGURES
    from tokenprune.bench.figures.canvas import save
    from tokenprune.bench.figures.runs import Runs, Settings

    names = list(dict.fromkeys(only or FIGURES))
    try:
        settings = Settings(prompt, steps, warmup_steps, alpha, seed, guidance_scale)
        _check("only", names, FIGURES)
        quiet()
        from tokenprune.embedded.load import EMBEDDED

        _check("model", [model], EMBEDDED)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    source = EMBEDDED[model]
    pipe = source.load()
    pipe.set_progress_bar_config(disable=True)
    runs = Runs(pipe, settings, source.arguments)
    console = Console()
    table = Table("figure", "kB", "what comes out", box=SIMPLE_HEAD, padding=0)
    numbers: dict[str, Any] = {}
    for name in names:
        with console.status(f"drawing {name}"):
            plot = FIGURES[name](runs)
            file = out / f"{name}.png"
            save(plot.figure, file)
        numbers[name] = plot.numbers
        table.add_row(file.name, f"{file.stat().st_size / 1000:.0f}", plot.summary)
    known = {"model": model, **asdict(settings), "threads": torch.get_num_threads(), "torch": torch.__version__}
    (out / NUMBERS).write_text(json.dumps({"settings": known, "figures": numbers}, indent=2) + "\n")
    console.print(table)
    print(f"written to {out}, with the numbers in {NUMBERS}")


def _check(option: str, values: Iterable[str], known: Iterable[str]) -> None:
    for value in values:
        if value not in known:
            raise ValueError(f"{option}: expected one of {', '.join(known)}, got {value!r}")
