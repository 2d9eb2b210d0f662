"""`tokenprune bench`: ways of pruning against the plain model, on an embedded pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tokenprune.embedded.quiet import quiet


def bench(
    suite: Annotated[
        str, typer.Option(help="sensitivity, ablations, step-caches, forecasts, plans, presets, rivals or plane.")
    ] = "plane",
    model: Annotated[str, typer.Option(help="Embedded pipeline: shapes-sd3 or shapes-pixart.")] = "shapes-sd3",
    budget: Annotated[float, typer.Option(help="Share of the plain model's token computations.")] = 0.5,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of the sampler; else the model's own.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Captions of the split, from its first.")] = 64,
    split: Annotated[str, typer.Option(help="tuning or held-out.")] = "held-out",
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; else the model's own.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time.")] = 8,
    out: Annotated[Path | None, typer.Option(help="JSON file; a file of the same run is taken up again.")] = None,
    into: Annotated[Path | None, typer.Option(help="Document in which to renew the table of the JSON file.")] = None,
) -> None:
    """Measure a suite of configurations: operations, PSNR and SSIM to the plain model's pictures, scene score."""
    from tokenprune.bench import results as result_files
    from tokenprune.bench.measure import Task
    from tokenprune.bench.run import run
    from tokenprune.bench.suites import SUITES, WITHOUT_BUDGET, make
    from tokenprune.bench.tables import cells, markdown, renew
    from tokenprune.embedded import scenes
    from tokenprune.embedded.load import EMBEDDED
    from tokenprune.embedded.score import summary

    for name, value, known in (("suite", suite, SUITES), ("model", model, EMBEDDED), ("split", split, SPLITS)):
        if value not in known:
            raise typer.BadParameter(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if not 0 < budget < 1:
        raise typer.BadParameter(f"budget: expected a share of the plain model's tokens in (0, 1), got {budget}")
    embedded = EMBEDDED[model]
    steps = steps or (SENSITIVITY_STEPS if suite == "sensitivity" else embedded.steps)
    scale = embedded.guidance_scale if guidance_scale is None else guidance_scale
    path = out or Path("out") / (
        f"{model}-{suite}.json" if suite in WITHOUT_BUDGET else f"{model}-{suite}-{budget}.json"
    )
    chosen = list(scenes.captions(split, prompts))  # type: ignore[arg-type]
    configurations = make(suite, budget, steps)
    settings: dict[str, Any] = {"model": model, "suite": suite, "split": split}
    if suite not in WITHOUT_BUDGET:
        settings["budget"] = budget
    command = [f"tokenprune bench --suite {suite} --model {model} --prompts {prompts} --split {split}"]
    command += [] if suite in WITHOUT_BUDGET else [f"--budget {budget}"]
    settings["command"] = " ".join([*command, f"--steps {steps} --guidance-scale {scale}"])
    quiet()
    pipe = embedded.load()
    pipe.set_progress_bar_config(disable=True)
    task = Task([caption for caption, _ in chosen], steps, scale, batch, embedded.arguments)
    with Progress(transient=True) as progress:
        bar = progress.add_task("", total=len(configurations) + 1)
        try:
            results = run(
                pipe,
                configurations,
                task,
                path,
                settings,
                score=lambda pictures: summary(pictures, [scene for _, scene in chosen]),
                begin=lambda way: progress.update(bar, advance=1, description=way.name),
            )
        except result_files.ResultFileError as error:
            raise typer.BadParameter(str(error)) from error
    by_psnr = suite != "sensitivity"
    if into is not None:
        try:
            renew(into, path.name, markdown(results, by_psnr))
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"into: {error}") from error
    columns, rows = cells(results, by_psnr)
    table = Table(title=f"{model}, {suite}: {prompts} prompts, {steps} steps", box=SIMPLE_HEAD, padding=0)
    shown = [place for place, name in enumerate(columns) if name != "source"]
    for place in shown:
        table.add_column(columns[place], justify="right" if columns[place] else "left", no_wrap=not columns[place])
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    Console().print(table)
    print(f"results: {path}")


SPLITS = ("tuning", "held-out")
SENSITIVITY_STEPS = 100
