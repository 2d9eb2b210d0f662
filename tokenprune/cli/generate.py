"""`tokenprune generate`: a picture for each prompt of a file, with a plan, on one device or many."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenprune.bench.commands import check_extra
from tokenprune.cli import options
from tokenprune.cli.progress import Progress
from tokenprune.cli.targets import number_or_name
from tokenprune.embedded.load import quiet
from tokenprune.errors import ConfigurationError
from tokenprune.plans.files import load_plan
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import best_plan, share_of
from tokenprune.reports.outputs import check_output

if TYPE_CHECKING:
    from tokenprune.generate.jobs import Job
    from tokenprune.generate.run import Summary


def generate(
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file of prompts, one a line; or .jsonl, objects with prompt and, if wanted, seed and name."
        ),
    ] = None,
    prompts_from: options.PromptsFrom = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many prompts, from the first; else all of a file, 64 of a data set.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures; one of the same run is taken up again.")] = Path(
        "out/pictures"
    ),
    model: options.Pipeline = "shapes-sd3",
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    variant: options.Variant = None,
    argument: options.CallArgument = None,
    plan: options.PlanFile = None,
    budget: options.Budget = None,
    plain: Annotated[bool, typer.Option("--plain", help="Draw with the plain model, without a plan.")] = False,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture; each further one's is one more.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time; each depends a bit on the others.")] = 1,
    ray: Annotated[
        int | None, typer.Option(min=1, help="Workers of a Ray Data job that draws; else this process does.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Draw a picture for each prompt, pruned as the recommended plan says, with a report beside each.

    The same command again draws what is missing, whatever ended it before. Under `accelerate launch` the processes
    share the work. Exits with 1 if prompts failed; each has a file .error that says why.
    """
    chosen = _plan(plan, budget, plain)
    jobs = _jobs(prompts, prompts_from, count, seed)
    check_output("out", out / "settings.json")
    if ray is not None:
        check_extra("ray")
    from tokenprune.bench.measuring.processes import is_main, state
    from tokenprune.bench.subjects.pipelines import find_subject, read_arguments
    from tokenprune.generate.folder import Folder
    from tokenprune.generate.painter import Request
    from tokenprune.generate.run import run

    quiet()
    subject = find_subject(model, dtype, device, variant, read_arguments(argument or ()))
    request = Request(
        model,
        steps or subject.steps,
        subject.scale(guidance_scale),
        chosen,
        batch,
        dtype,
        subject.settings["device"],
        variant,
        subject.arguments,
    )
    if ray is not None:
        from tokenprune.generate.ray_data import run_with_ray

        if (processes := state().num_processes) > 1:
            raise ConfigurationError(
                f"ray: expected one process, which starts the workers, got {processes} of accelerate launch"
            )
        summary = run_with_ray(request, jobs, Folder(out), ray)
    else:
        with Progress(shown=is_main()) as progress:
            summary = run(request, jobs, Folder(out), progress)
    if is_main():
        _show(summary, out, as_json)
    if summary.failed:
        raise typer.Exit(1)


def _plan(file: Path | None, budget: str | None, plain: bool) -> Plan | None:
    told = {"plan": file is not None, "budget": budget is not None, "plain": plain}
    if sum(told.values()) > 1:
        given = ", ".join(name for name, value in told.items() if value)
        raise ConfigurationError(f"{given}: expected only one of plan, budget and plain")
    if plain:
        return None
    with options.refusing_values():
        return best_plan(share_of(number_or_name(budget or "balanced"))) if file is None else load_plan(file)


def _jobs(file: Path | None, data_set: str | None, count: int | None, seed: int) -> tuple[Job, ...]:
    from tokenprune.bench.subjects.prompts import from_data_set
    from tokenprune.generate.jobs import jobs_of, read_jobs

    if file is not None and data_set is None:
        return read_jobs(file, seed, count)
    if file is None and data_set is not None:
        return jobs_of(from_data_set(data_set, count).texts, seed)
    raise ConfigurationError(f"prompts: expected one of --prompts and --prompts-from, got {'both' if file else 'none'}")


def _show(summary: Summary, out: Path, as_json: bool) -> None:
    if as_json:
        options.print_json({"out": str(out), **asdict(summary), "before": summary.before})
        return
    for name, error in summary.failed.items():
        print(f"{name} failed: {error}")
    before = f", {summary.before} were there before" if summary.before else ""
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    print(f"{summary.drawn} of {summary.prompts} pictures drawn in {summary.seconds:.1f} s{before}{failed}: {out}")
