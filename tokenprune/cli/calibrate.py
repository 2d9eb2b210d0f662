"""`tokenprune calibrate`: fit the recommended plan's corrections and full steps to a model; write a plan file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenprune.cli import options
from tokenprune.cli.progress import Progress
from tokenprune.cli.two_sets import described, show_rows, split_prompts
from tokenprune.embedded.load import quiet
from tokenprune.errors import ConfigurationError
from tokenprune.plans.formats import WRITTEN
from tokenprune.reports.outputs import check_output

STAGES = 7
"""Measuring, corrections, full steps, the plain model, the plan before and after, the plain model with fewer steps."""


def calibrate(
    budget: Annotated[float, typer.Option(help="Share of the plain model's operations, between 0 and 1.")] = 0.5,
    prompts: options.PromptFile = None,
    held_out_prompts: options.HeldOutPrompts = None,
    measure_on: Annotated[
        int | None, typer.Option(min=1, help="Prompts to measure on; else 6 captions, or what a file has left.")
    ] = None,
    hold_out: options.HoldOut = None,
    model: options.Pipeline = "shapes-sd3",
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    variant: options.Variant = None,
    argument: options.CallArgument = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Plan file (.yaml or .json).")] = None,
    as_json: options.Json = False,
) -> None:
    """Fit the recommended plan to a model, sampler, guidance and number of steps; write a plan file."""
    if not 0 < budget < 1:
        raise ConfigurationError(f"budget: expected a share of the plain model's operations in (0, 1), got {budget}")
    path = out or Path("out") / f"{model.strip('/').replace('/', '-')}-{budget}-calibrated.yaml"
    check_output("out", path, *WRITTEN)
    from tokenprune.bench.measuring.measure import Task
    from tokenprune.bench.measuring.run import stamp
    from tokenprune.bench.subjects.pipelines import find_subject, read_arguments
    from tokenprune.bench.tuning.calibration import AS_IT_WAS, CALIBRATED
    from tokenprune.bench.tuning.calibration import calibrate as measure
    from tokenprune.plans.files import save_plan
    from tokenprune.plans.presets import best_plan

    quiet()
    subject = find_subject(model, dtype, device, variant, read_arguments(argument or ()))
    scale = subject.scale(guidance_scale)
    tuning, held_out = split_prompts(model, prompts, held_out_prompts, measure_on, hold_out)
    task = Task(tuning.texts, steps or subject.steps, scale, batch, subject.arguments)
    told: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "device": device,
        "variant": variant,
        "argument": argument,
        "budget": budget,
        "prompts": prompts,
        "held-out-prompts": held_out_prompts,
        "measure-on": len(tuning.texts),
        "hold-out": len(held_out.texts),
        "steps": task.steps,
        "guidance-scale": scale,
        "batch": batch,
        "out": path,
    }
    pipe = subject.load()
    with Progress(STAGES) as progress:
        found = measure(pipe, best_plan(budget), task, replace(task, prompts=held_out.texts), progress.begin)
    settings = {
        "model": model,
        "budget": budget,
        "sampler": type(pipe.scheduler).__name__,
        "steps": task.steps,
        "guidance_scale": scale,
        "arguments": subject.plain_arguments,
        "measured_on": described(tuning),
        "held_out_prompts": described(held_out),
        "command": options.command_line("calibrate", told),
        "changes": found.changes,
        "tried": {name: round(psnr, 2) for name, psnr in found.tried.items()},
        "rows": {row.name: row.notes for row in found.rows},
        "verdict": found.text,
        **subject.settings,
        **stamp(),
    }
    save_plan(found.plan, path, settings)
    if as_json:
        options.print_json({**settings, "calibrated": found.won, "plan": str(path)})
        return
    title = f"{model}, {budget} of the operations, {task.steps} steps"
    show_rows(found.rows, title, task, replace(task, prompts=held_out.texts))
    print(found.text)
    print(f"plan ({CALIBRATED if found.won else AS_IT_WAS}): {path}")
