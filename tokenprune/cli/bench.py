"""`tokenprune bench`: configurations against the plain model, on an embedded pipeline or one of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.bench.commands import check_known
from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.configurations.suites import SUITES, WITHOUT_BUDGET, make
from tokenprune.cli import options
from tokenprune.cli.progress import Progress
from tokenprune.cli.tables import Column, Listing, show
from tokenprune.embedded.load import quiet
from tokenprune.errors import ConfigurationError
from tokenprune.reports.outputs import check_output

if TYPE_CHECKING:
    from tokenprune.bench.measuring.result_file import Results
    from tokenprune.bench.subjects.prompts import Prompts

SENSITIVITY_STEPS = 100


def bench(
    suite: Annotated[
        str | None, typer.Option(help=f"{', '.join(SUITES)}; plane where no --config is given.", show_default=False)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML, YAML or JSON file of configurations of your own.")] = None,
    model: options.Pipeline = "shapes-sd3",
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    variant: options.Variant = None,
    argument: options.CallArgument = None,
    budget: Annotated[float, typer.Option(help="Share of the plain model's token computations, for suites.")] = 0.5,
    steps: options.Steps = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="How many, from the first; else 64, or all of a file.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the embedded captions: tuning or held-out.")] = "held-out",
    prompts_file: Annotated[Path | None, typer.Option(help="Text file of prompts, one a line.")] = None,
    prompts_from: options.PromptsFrom = None,
    guidance_scale: options.GuidanceScale = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time.")] = 8,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="lpips, clip-score=MODEL, clip-iqa=MODEL or pick-score=MODEL; may be repeated."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=0, help="Pairs of generations that time each configuration; 0: no timing.")
    ] = 3,
    timing_batch: Annotated[int, typer.Option(min=1, help="Pictures of a timed generation.")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file; a file of the same run is taken up again.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write the table to.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw fidelity against seconds and MACs to.")] = None,
    into: Annotated[Path | None, typer.Option(help="Document in which to renew the table of the JSON file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure configurations against the plain model: what they compute, how near its pictures they come, how good."""
    if config is not None and suite is not None:
        raise ConfigurationError(f"suite: expected none beside --config, got {suite!r}")
    check_known("suite", [suite] if suite else [], SUITES)
    if not 0 < budget < 1:
        raise ConfigurationError(f"budget: expected a share of the plain model's tokens in (0, 1), got {budget}")
    compared: dict[str, Any] = {"suite": suite or "plane"} if config is None else {"config": config}
    of_budget = None if config or suite in WITHOUT_BUDGET else budget
    path = out or Path("out") / _file_name(model, suite or (config.stem if config else "plane"), of_budget)
    _check_outputs(path, markdown, plot, into)
    from tokenprune.bench.measuring.measure import Task
    from tokenprune.bench.measuring.processes import is_main
    from tokenprune.bench.measuring.quality import find_quality
    from tokenprune.bench.measuring.run import run
    from tokenprune.bench.subjects.pipelines import find_subject, read_arguments

    quiet()
    main = is_main()  # also tells each process its device
    subject = find_subject(model, dtype, device, variant, read_arguments(argument or ()))
    steps = steps or (SENSITIVITY_STEPS if suite == "sensitivity" else subject.steps)
    configurations = _configurations(suite, config, budget, steps)
    scale = subject.scale(guidance_scale)
    chosen = _prompts(split, prompts_file, prompts_from, prompts)
    told: dict[str, Any] = {
        **compared,
        "model": model,
        "dtype": None if dtype == "float32" else dtype,
        "device": device,
        "variant": variant,
        "prompts": len(chosen.texts),
        **({"split": split} if chosen.scenes else {"prompts-file": prompts_file, "prompts-from": prompts_from}),
        "budget": of_budget,
        "steps": steps,
        "guidance-scale": scale,
        "batch": batch,
        "metric": metric,
        "repeats": repeats,
        "timing-batch": timing_batch if repeats else None,
        "argument": argument,
    }
    quality = find_quality(metric or (), subject.settings["device"])
    settings = {
        **_settings(told, subject.plain_arguments, chosen, configurations),
        **subject.settings,
        **quality.settings,
    }
    task = Task(chosen.texts, steps, scale, batch, subject.arguments)
    pipe = subject.load()
    with Progress(shown=main) as progress:
        results = run(
            pipe,
            configurations,
            task,
            path,
            settings,
            score=chosen.score if subject.learnt else None,
            quality=quality.figures,
            begin=lambda one: progress.begin(one.name),
            expect=progress.expect,
            repeats=repeats,
            timing_batch=timing_batch,
            renew=subject.load,
        )
    if main:
        written = {"results": path, "markdown": markdown, "plot": plot, "into": into}
        _write(results, path, markdown, plot, into)
        if as_json:
            files = {name: str(file) for name, file in written.items() if file is not None}
            options.print_json({"settings": results.settings, "rows": results.rows, **files})
        else:
            _tell(results, path)


def _configurations(suite: str | None, config: Path | None, budget: float, steps: int) -> list[Configuration]:
    if config is None:
        return make(suite or "plane", budget, steps)
    from tokenprune.bench.configurations.files import read_configurations

    return read_configurations(config, steps)


def _prompts(split: str, file: Path | None, data_set: str | None, count: int | None) -> Prompts:
    from tokenprune.bench.subjects.prompts import captions, from_data_set, from_file

    if file is not None and data_set is not None:
        raise ConfigurationError("prompts: expected --prompts-file or --prompts-from, got both")
    if file is not None:
        return from_file(file, count)
    return captions(split, count) if data_set is None else from_data_set(data_set, count)


def _settings(
    told: Mapping[str, Any], arguments: Mapping[str, Any], prompts: Prompts, configurations: list[Configuration]
) -> dict[str, Any]:
    """Everything that the rows depend on, but what the task and the subject say themselves."""
    from tokenprune.bench.configurations.files import digest

    return {
        **{name: str(told[name]) for name in ("model", "suite", "config", "split") if name in told},
        **({} if told["budget"] is None else {"budget": told["budget"]}),
        "configurations": digest(configurations),
        "prompts_source": prompts.source,
        "prompts_digest": prompts.digest,
        "arguments": arguments,
        "command": options.command_line("bench", told),
    }


def _file_name(model: str, compared: str, budget: float | None) -> str:
    parts = [model.strip("/").replace("/", "-"), compared, *([] if budget is None else [str(budget)])]
    return f"{'-'.join(parts)}.json"


def _check_outputs(out: Path, markdown: Path | None, plot: Path | None, into: Path | None) -> None:
    """Raise before anything is drawn what would go wrong after it."""
    from tokenprune.bench.tables.cells import marks

    check_output("out", out)
    if markdown is not None:
        check_output("markdown", markdown)
    if plot is not None:
        check_output("plot", plot, ".png")
    if into is None:
        return
    if not into.is_file() or not all(mark in into.read_text() for mark in marks(out.name)):
        expected = " and ".join(repr(mark.strip()) for mark in marks(out.name))
        raise ConfigurationError(f"into: expected a document with the lines {expected}, got {into}")
    check_output("into", into)


def _write(results: Results, path: Path, markdown: Path | None, plot: Path | None, into: Path | None) -> None:
    from tokenprune.bench.tables import cells

    by_psnr = _by_psnr(results)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(cells.markdown(results, by_psnr))
    if into is not None:
        cells.renew(into, path.name, cells.markdown(results, by_psnr))
    if plot is not None:
        from tokenprune.bench.tables.pareto import plot as draw_plot

        plot.parent.mkdir(parents=True, exist_ok=True)
        draw_plot(results, plot)


def _tell(results: Results, path: Path) -> None:
    from tokenprune.bench.tables import cells

    settings = results.settings
    by_psnr = _by_psnr(results)
    what = settings.get("suite") or settings["config"]
    title = f"{settings['model']}, {what}: {settings['prompts']} prompts, {settings['steps']} steps"
    _show(title, *cells.cells(results, by_psnr))
    if cells.is_timed(results):
        _show("clock", *cells.cost_cells(results, by_psnr, cells.CLOCK))
        _show("overheads", *cells.cost_cells(results, by_psnr, cells.OVERHEADS))
    for line in [*cells.noises(results), *cells.failures(results)]:
        print(line)
    for name, reason in settings.get("metrics_left_out", {}).items():
        print(f"{name} left out: {reason}")
    print(f"results: {path}")


def _by_psnr(results: Results) -> bool:
    return bool(results.settings.get("suite") != "sensitivity")


def _show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    shown = [place for place, name in enumerate(columns) if name != "source"]
    heads = [Column(columns[place], left=not columns[place]) for place in shown]
    show(Listing(title, heads, [[row[place] for place in shown] for row in rows]))
