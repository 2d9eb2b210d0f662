"""`tokenprune tune`: the plan for a share of the cost, searched on a few prompts for a model of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from tokenprune.bench.commands import check_known
from tokenprune.cli import options
from tokenprune.cli.progress import Progress
from tokenprune.cli.two_sets import described, show_rows, split_prompts
from tokenprune.embedded.load import quiet
from tokenprune.errors import ConfigurationError
from tokenprune.plans.formats import WRITTEN
from tokenprune.reports.outputs import check_output

if TYPE_CHECKING:
    from optuna import Study

    from tokenprune.bench.measuring.measure import Task

FOR_COMPARISON = 2
"""The plain model and the one with fewer steps, which the contenders on the held-out prompts are compared with."""

MOST_HELD_OUT = 3 + FOR_COMPARISON
"""With the contenders, at most."""


def tune(
    budget: Annotated[float, typer.Option(help="Share of the plain model's cost, between 0 and 1.")] = 0.5,
    cost: Annotated[str, typer.Option(help="What the budget counts: tokens (computed) or macs.")] = "tokens",
    prompts: options.PromptFile = None,
    held_out_prompts: options.HeldOutPrompts = None,
    tune_on: Annotated[
        int | None, typer.Option(min=1, help="Prompts to tune on; else 6 captions, or what a file has left.")
    ] = None,
    hold_out: options.HoldOut = None,
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
    as_json: options.Json = False,
) -> None:
    """Search schedule, policy and forecast for a budget, on a few prompts; report on others and write a plan file."""
    if not 0 < budget < 1:
        raise ConfigurationError(f"budget: expected a share of the plain model's {cost} in (0, 1), got {budget}")
    path = out or Path("out") / f"{model.strip('/').replace('/', '-')}-{budget}-plan.yaml"
    check_output("out", path, *WRITTEN)
    from tokenprune.bench.measuring.measure import Task
    from tokenprune.bench.subjects.pipelines import find_subject, read_arguments
    from tokenprune.bench.tuning.search import Cost, open_study
    from tokenprune.bench.tuning.space import digest

    quiet()
    check_known("cost", [cost], get_args(Cost))
    subject = find_subject(model, dtype, device, variant, read_arguments(argument or ()))
    scale = subject.scale(guidance_scale)
    tuning, held_out = split_prompts(model, prompts, held_out_prompts, tune_on, hold_out)
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
        "tuning_prompts": described(tuning),
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
    settings |= {"held_out_prompts": described(held_out), "command": options.command_line("tune", told)}
    _run(subject.load(), study, task, replace(task, prompts=held_out.texts), told, settings, as_json)


def _run(
    pipe: Any,
    study: Study,
    task: Task,
    held_out: Task,
    told: Mapping[str, Any],
    settings: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Search, compare, write and show."""
    from tokenprune.bench.tuning.held_out import compare, contenders, judge, notes
    from tokenprune.bench.tuning.search import probe, search
    from tokenprune.bench.tuning.space import Space
    from tokenprune.plans.files import save_plan

    with Progress() as progress:
        progress.begin("what a step costs")
        space = Space(told["budget"], probe(pipe, task, told["cost"]))

        def begin(name: str, done: int, best: float | None) -> None:
            progress.expect(1 + len(space.presets()) + told["trials"] + MOST_HELD_OUT)
            progress.begin(name, "" if best is None else f" (best so far {best:.2f} dB)")

        found = search(pipe, task, space, study, told["trials"], told["seed"], told["timeout"], begin)
        progress.expect(progress.done + 1 + len(contenders(found)) + FOR_COMPARISON)
        rows = compare(pipe, found, task, held_out, lambda name: progress.begin(f"held-out prompts: {name}"))
    verdict = judge(found, rows)
    noted = notes(found, rows, verdict, settings)
    save_plan(found.best.plan, told["out"], noted)
    if as_json:
        options.print_json({**noted, "plan": str(told["out"])})
        return
    show_rows(rows, f"{told['model']}, {told['budget']} of the {told['cost']}, {task.steps} steps", task, held_out)
    for name, error in found.failed.items():
        print(f"failed: {name}: {error}")
    print(f"{len(found.presets)} presets and {found.trials} other plans tried, {found.stopped} of them stopped early.")
    print(f"The tuned plan is {found.best.name}: {found.best.plan}")
    print(verdict.text)
    print(f"plan: {told['out']}")
