"""`tokenprune macs`: operations of a model, or of the paper's models, next to the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tokenprune.bench.configurations.schedules import PAPER
from tokenprune.cli import options
from tokenprune.cli.macs_tables import of_generations, of_modules, of_paper
from tokenprune.cli.tables import show
from tokenprune.errors import ConfigurationError
from tokenprune.schedule import WarmupSchedule

if TYPE_CHECKING:
    from tokenprune.bench.subjects.transformers import Loaded
    from tokenprune.macs.example_calls import Wanted
    from tokenprune.plans.plan import Plan


def macs(
    model: Annotated[str | None, typer.Argument(help=f"{options.MODEL} None: the paper's two.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help=f"Fraction of image tokens at a pruned step: {PAPER.alpha}.")
    ] = None,
    warmup_steps: Annotated[int | None, typer.Option(help=f"Full steps at the start: {PAPER.warmup_steps}.")] = None,
    plan: options.PlanFile = None,
    budget: options.Budget = None,
    steps: Annotated[list[int], typer.Option(help="Steps of a generation; may be repeated.")] = [28, 50],  # noqa: B006
    height: options.Height = None,
    width: options.Width = None,
    size: options.Size = None,
    frames: options.Frames = None,
    text: options.Text = None,
    guidance: options.Guidance = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Show modules of a full and a pruned call.")] = False,
    depth: Annotated[int, typer.Option(help="Depth of modules shown: 1 for the model's own.")] = 1,
    as_json: options.Json = False,
) -> None:
    """Count multiply-accumulate operations, dense and pruned, of any model, or of the paper's next to its figures.

    The paper's are SD3-medium and PixArt-Sigma (1024x1024, guidance). A model is pruned as the plan or the budget says,
    else by CAT Pruning with alpha and warmup-steps. Runs on the meta device: no weights, no arithmetic.
    """
    from tokenprune.macs.example_calls import Wanted

    options.at_least(steps=min(steps), depth=depth, height=height, width=width, size=size, frames=frames)
    wanted = Wanted(height or size, width or size, frames, text, None, guidance)
    by_cat = alpha is not None or warmup_steps is not None or (plan is None and budget is None)
    fraction = PAPER.alpha if alpha is None and by_cat else alpha
    warmup = PAPER.warmup_steps if warmup_steps is None and by_cat else warmup_steps
    if model is not None:
        from tokenprune.bench.subjects.transformers import load
        from tokenprune.cli.targets import plan_of

        loaded = load(model)
        chosen = plan_of(loaded.model, plan, budget, fraction, warmup)
        _of_model(loaded, wanted, chosen, steps, depth if per_layer else 0, as_json)
        return
    beside = [name for name, value in (("plan", plan), ("budget", budget), ("per-layer", per_layer)) if value]
    if beside or wanted.given() or guidance:
        named = ", ".join([*beside, *wanted.given(), *(["guidance"] if guidance else [])])
        raise ConfigurationError(f"{named}: expected only with a MODEL; the paper's table has its own settings")
    with options.refusing_values():
        schedule = WarmupSchedule(fraction or 0, warmup or 0)
    from tokenprune.bench.studies.paper_macs import paper_rows

    rows = paper_rows(schedule, steps)
    if as_json:
        options.print_json([asdict(row) for row in rows])
    else:
        show(of_paper(rows, schedule))


def _of_model(loaded: Loaded, wanted: Wanted, plan: Plan, steps: Sequence[int], depth: int, as_json: bool) -> None:
    """Print what the model computes, with each module down to a depth (0: without modules).

    Raises:
        TokenPruneError: the model cannot be pruned, or its calls are not known.
    """
    from tokenprune.cli.targets import call_of, find_map, notes_of
    from tokenprune.macs.breakdown import commonest_call, of_generation, of_layers
    from tokenprune.macs.rehearsal import rehearse

    found = find_map(loaded)
    called = call_of(loaded, wanted)
    name = type(loaded.model).__name__
    if called is None:
        raise ConfigurationError(f"{name}: name a factory, module.path:factory, that gives arguments of a call")
    runs = [rehearse(loaded.model, found.map, called.call, plan, number) for number in steps]
    generations = [of_generation(run) for run in runs]
    some = commonest_call(runs[0])
    layers = list(of_layers(loaded.model, runs[0], some, depth)) if depth else []
    if as_json:
        content = {
            "model": name,
            "grid": runs[0].grid,
            "text_tokens": called.text,
            "guidance": called.guidance,
            "plan": repr(plan),
            "generations": [
                {**asdict(each), "tokens": run.counts} for each, run in zip(generations, runs, strict=True)
            ],
            **({"pruned_call_tokens": some.tokens, "layers": [asdict(layer) for layer in layers]} if depth else {}),
        }
        options.print_json(content)
        return
    title = f"{name}, {called.size}, {' x '.join(map(str, runs[0].grid))} tokens, guidance: {called.guidance}"
    show(of_generations(title, generations))
    for run in runs:
        print(f"tokens of {len(run.counts)} steps: {options.runs_of(run.counts)}")
    if depth:
        show(of_modules(layers, some.tokens, runs[0].tokens))
    for note in [*notes_of(loaded.model, found.map), *found.notes]:
        print(f"note: {note}")
