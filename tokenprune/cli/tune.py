"""`tokenprune tune`: the plan for a share of the cost, searched on a few prompts for a model of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tokenprune.bench.commands import check_known
from tokenprune.cli import options
from tokenprune.cli.progress import Progress
from tokenprune.embedded.load import EMBEDDED, quiet
from tokenprune.errors import ConfigurationError
from tokenprune.reports.outputs import check_output

if TYPE_CHECKING:
    from optuna import Study

    from tokenprune.bench.measuring.measure import Task
    from tokenprune.bench.subjects.prompts import Prompts
    from tokenprune.bench.tuning.held_out import HeldOutRow

TUNING_CAPTIONS, HELD_OUT_CAPTIONS = 6, 16
SUFFIXES = (".yaml", ".yml", ".json")


def tune(
    budget: Annotated[float, typer.Option(help="Share of the plain model's cost, between 0 and 1.")] = 0.5,
    cost: Annotated[str, typer.Option(help="What the budget counts: tokens (computed) or macs.")] = "tokens",
    prompts: Annotated[Path | None, typer.Option(help="Text file of prompts, one a line.")] = None,
    held_out_prompts: Annotated[
        Path | None, typer.Option(help="Text file of prompts to report on; else the last part of --prompts.")
    ] = None,
    tune_on: Annotated[
        int | None, typer.Option(min=1, help="Prompts to tune on; else 6 captions, or what a file has left.")
    ] = None,
    hold_out: Annotated[
        int | None, typer.Option(min=1, help="Prompts to report on; else 16 captions, or half of the file.")
    ] = None,
    model: options.Pipeline = "shapes-sd3",
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    variant: options.Variant = None,
    argument: options.CallArgument = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time; poor plans stop between.")] = 2,
    trials: Annotated[int, typer.Option(min=0, help="Plans to try beside the presets.")] = 30,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds after which no further plan is tried.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Plan file (.yaml or .json); its journal, beside it, is taken up again.")
    ] = None,
) -> None:
    """Search schedule, policy and forecast for a budget, on a few prompts; report on others and write a plan file."""
    if not 0 < budget < 1:
        raise ConfigurationError(f"budget: expected a share of the plain model's {cost} in (0, 1), got {budget}")
    path = out or Path("out") / f"{model.strip('/').replace('/', '-')}-{budget}-plan.yaml"
    check_output("out", path, *SUFFIXES)
    from tokenprune.bench.measuring.measure import Task
    from tokenprune.bench.subjects.pipelines import find_subject, read_arguments
    from tokenprune.bench.tuning.search import Cost, open_study
    from tokenprune.bench.tuning.space import digest

    quiet()
    check_known("cost", [cost], get_args(Cost))
    subject = find_subject(model, dtype, device, variant, read_arguments(argument or ()))
    scale = subject.scale(guidance_scale)
    tuning, held_out = _prompts(model, prompts, held_out_prompts, tune_on, hold_out)
    task = Task(tuning.texts, steps or subject.steps, scale, batch, subject.arguments)
    settings: dict[str, Any] = {
        "model": model,
        "budget": budget,
        "cost": cost,
        "steps": task.steps,
        "guidance_scale": scale,
        "arguments": subject.plain_arguments,
        "batch": batch,
        "seed": seed,
        "space": digest(),
        "tuning_prompts": _described(tuning),
        **subject.settings,
    }
    study = open_study(path.with_name(f"{path.name}.journal"), settings)
    told = {
        "model": model,
        "dtype": dtype,
        "device": device,
        "variant": variant,
        "argument": argument,
        "budget": budget,
        "cost": cost,
        "prompts": prompts,
        "held-out-prompts": held_out_prompts,
        "tune-on": len(tuning.texts),
        "hold-out": len(held_out.texts),
        "steps": task.steps,
        "guidance-scale": scale,
        "batch": batch,
        "trials": trials,
        "timeout": timeout,
        "seed": seed,
        "out": path,
    }
    settings |= {"held_out_prompts": _described(held_out), "command": options.command_line("tune", told)}
    _run(subject.load(), study, task, replace(task, prompts=held_out.texts), told, settings)


def _run(
    pipe: Any, study: Study, task: Task, held_out: Task, told: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Search, compare, write and show."""
    from tokenprune.bench.tuning.held_out import compare, judge, notes
    from tokenprune.bench.tuning.search import probe, search
    from tokenprune.bench.tuning.space import Space
    from tokenprune.plans.files import save_plan

    with Progress() as progress:
        progress.begin("what a step costs")
        space = Space(told["budget"], probe(pipe, task, told["cost"]))

        def begin(name: str, done: int, best: float | None) -> None:
            progress.expect(1 + len(space.presets()) + told["trials"])
            progress.begin(name, "" if best is None else f" (best so far {best:.2f} dB)")

        found = search(pipe, task, space, study, told["trials"], told["seed"], told["timeout"], begin)
        rows = compare(pipe, found, task, held_out, lambda name: progress.begin(f"held-out prompts: {name}"))
    verdict = judge(found, rows)
    save_plan(found.best.plan, told["out"], notes(found, rows, verdict, settings))
    _show(rows, f"{told['model']}, {told['budget']} of the {told['cost']}, {task.steps} steps", task, held_out)
    for name, error in found.failed.items():
        print(f"failed: {name}: {error}")
    print(f"{len(found.presets)} presets and {found.trials} other plans tried, {found.stopped} of them stopped early.")
    print(f"The tuned plan is {found.best.name}: {found.best.plan}")
    print(verdict.text)
    print(f"plan: {told['out']}")


def _prompts(
    model: str, file: Path | None, held_out_file: Path | None, tune_on: int | None, hold_out: int | None
) -> tuple[Prompts, Prompts]:
    """The prompts to tune on and those to report on: of captions, of two files, or of the two ends of one."""
    from tokenprune.bench.subjects.prompts import captions, from_file

    if file is None:
        if held_out_file is not None or model not in EMBEDDED:
            raise ConfigurationError(f"prompts: expected a text file of prompts for {model}, got none")
        return captions("tuning", tune_on or TUNING_CAPTIONS), captions("held-out", hold_out or HELD_OUT_CAPTIONS)
    tuning = from_file(file)
    if held_out_file is not None:
        tuning, held_out = from_file(file, tune_on), from_file(held_out_file, hold_out)
    else:
        count = len(tuning.texts)
        last = hold_out or (count // 2 if tune_on is None else count - tune_on)
        first = tune_on or count - last
        if min(first, last) < 1 or first + last > count:
            wanted = f"{tune_on or 'some'} to tune on and {hold_out or 'some'} to report on"
            raise ConfigurationError(f"{file}: expected prompts to split, {wanted}, got {count}")
        held_out = replace(tuning, texts=tuning.texts[count - last :], source=f"last {tuning.source}")
        tuning = replace(tuning, texts=tuning.texts[:first], source=f"first {tuning.source}")
    if both := sorted(set(tuning.texts) & set(held_out.texts)):
        raise ConfigurationError(f"held-out prompts: expected none that is tuned on, got {both[0]!r}")
    return tuning, held_out


def _described(prompts: Prompts) -> dict[str, Any]:
    return {"source": prompts.source, "count": len(prompts.texts), "digest": prompts.digest}


def _show(rows: list[HeldOutRow], title: str, task: Task, held_out: Task) -> None:
    from tokenprune.bench.measuring.fidelity import in_words, psnr_summary

    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    sets = [f"{name}, {len(of.prompts)} prompts (dB)" for name, of in (("tuning", task), ("held-out", held_out))]
    for place, name in enumerate(("", "tokens", "MACs", *sets)):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        psnr = (in_words(*psnr_summary(each), each.count(None), digits=2) for each in (row.tuning, row.held_out))
        table.add_row(row.name, f"{row.tokens_ratio:.3f}", f"{row.mac_ratio:.3f}", *psnr)
    Console().print(table)
