"""`tokenprune inspect`: where pruning takes hold of a model, what it computes and what it keeps."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tokenprune.bench.commands import check_known
from tokenprune.bench.subjects.pipelines import DTYPES
from tokenprune.bench.subjects.transformers import Loaded, load
from tokenprune.cli import options
from tokenprune.cli.targets import GUIDANCE, call_of, find_map, notes_of, plan_of
from tokenprune.discovery.code import source_of
from tokenprune.errors import ConfigurationError, one_line
from tokenprune.macs.example_calls import ResolvedCall, Wanted
from tokenprune.macs.rehearsal import Rehearsal, counts_of, rehearse
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.grid import num_tokens
from tokenprune.plans.plan import Plan
from tokenprune.reports.checks import CheckResult
from tokenprune.units import memory_in_words


def inspect(
    target: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL)],
    height: options.Height = None,
    width: options.Width = None,
    size: options.Size = None,
    frames: options.Frames = None,
    text: options.Text = None,
    batch: options.Batch = None,
    guidance: options.Guidance = None,
    dtype: Annotated[str, typer.Option(help="Precision of the caches: float32, float16 or bfloat16.")] = "float16",
    budget: options.Budget = None,
    plan: options.PlanFile = None,
    steps: Annotated[int, typer.Option(help="Steps of a generation.")] = 28,
    tokens: Annotated[int | None, typer.Option(help="Image tokens to reckon keys and values for.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the map, too: prunes a factory's model and compares; takes a minute or so."
        ),
    ] = False,
    code: Annotated[bool, typer.Option("--code", help="Print the map as an adapter's source code.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show a model's map, an adapter's or discovered, and what a plan would compute and keep at a size.

    Needs no weights: models are built from their configs on torch's meta device.
    """
    check_known("dtype", [dtype], DTYPES)
    options.at_least(steps=steps, tokens=tokens, height=height, width=width, size=size, frames=frames, batch=batch)
    loaded = load(target)
    if check and loaded.inputs is None:
        raise ConfigurationError(
            "check: expected a factory, module.path:factory, that gives a model with weights and arguments of a call"
        )
    found = find_map(loaded)
    name = type(loaded.model).__name__
    if code:
        source = source_of(found.map, name)
        if as_json:
            options.print_json({"model": name, "origin": found.origin, "code": source})
        else:
            print(source, end="")
        return
    chosen = plan_of(loaded.model, plan, None if plan else budget or "balanced", None, None)
    wanted = Wanted(height or size, width or size, frames, text, batch, guidance)
    called = call_of(loaded, wanted)
    rows, notes = _of_map(found.map), [*notes_of(loaded.model, found.map), *found.notes]
    figures: dict[str, Any] = {}
    if called is None:
        notes.append("sizes cannot be shown: name a factory, module.path:factory, that gives arguments of a call")
    else:
        rows |= _of_call(called, found.map)
        try:
            rehearsal = rehearse(loaded.model, found.map, called.call, chosen, steps, DTYPES[dtype])
        except ConfigurationError as error:
            notes.append(str(error))
            count = num_tokens(found.map.grid(called.call.arguments))
            rows |= _of_plan(chosen, counts_of(chosen.schedule or chosen.policy.schedule(), count, steps), count)
        else:
            rows |= _of_plan(chosen, rehearsal.counts, rehearsal.tokens)
            rows |= _of_sizes(rehearsal, called, dtype, tokens)
            figures = _figures(rehearsal, tokens)
    checked = _checked(loaded, found.map) if check else None
    if as_json:
        content = {"model": name, "origin": found.origin, "facts": rows, "figures": figures, "notes": notes}
        options.print_json({**content, **({} if checked is None else {"check": asdict(checked)})})
        return
    table = Table(box=SIMPLE_HEAD, padding=0, show_header=False, title=f"{name}, {found.origin}")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows.items():
        table.add_row(*row)
    Console(highlight=False).print(table)
    for note in notes:
        print(f"note: {note}")
    if checked is not None:
        print(checked)


def _checked(loaded: Loaded, found: ModuleMap) -> CheckResult:
    """What the kit for adapters says of a map.

    Raises:
        ConfigurationError: it does not pass.
    """
    from tokenprune.testing import AdapterCheckError, check_adapter

    try:
        return check_adapter(lambda: loaded.model, loaded.inputs or {}, adapter=lambda _: found, tell=_tell)
    except AdapterCheckError as error:
        print(error.result)
        raise ConfigurationError(f"check: {one_line(error)}") from error


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _of_map(found: ModuleMap) -> dict[str, str]:
    sites, first = found.block_sites, found.block_sites[0]
    layouts = Counter(site.layout for site in found.attentions)
    gathered = dict.fromkeys(each.name for site in sites for each in site.tokens)
    return {
        "entry": f"{first.path}, of {len(sites)} blocks up to {sites[-1].path}",
        "gathered": ", ".join(gathered) or "nothing in blocks",
        "model arguments": ", ".join(dict.fromkeys(each.name for each in found.inputs)) or "none gathered",
        "attention": ", ".join(f"{count} x {layout}" for layout, count in layouts.items()),
        "constants": f"{len(found.constants)} layers that see {found.text!r} alone" if found.constants else "none",
        "exit": f"{found.exit_site.path} ({found.exit_site.layout})",
        "latents, time": f"{found.latents}, {found.time}" + (" (rises)" if found.time_rises else ""),
        "selection": "one for the whole batch" if found.shared else "one for each image",
    }


def _of_call(called: ResolvedCall, found: ModuleMap) -> dict[str, str]:
    grid, arguments = found.grid(called.call.arguments), called.call.arguments
    references = sum(found.references(arguments)) if found.references else 0
    beside = f", {references} beside it at full steps only" if references else ""
    return {
        "size": called.size,
        "token grid": f"{' x '.join(map(str, grid))} = {num_tokens(grid)} tokens{beside}",
        **({} if called.text is None else {"text": f"{called.text} tokens"}),
        "guidance": GUIDANCE[called.guidance],
    }


def _of_plan(plan: Plan, counts: tuple[int, ...], tokens: int) -> dict[str, str]:
    full = sum(count == tokens for count in counts)
    share = sum(counts) / (len(counts) * tokens)
    return {
        "plan": f"{plan.policy!r}, {plan.schedule or plan.policy.schedule()!r}, {plan.reuse!r}"
        + ("" if plan.corrector is None else f", {plan.corrector!r}"),
        "steps": f"{len(counts)}, {full} of them full; {share:.1%} of the tokens",
        "tokens of steps": options.runs_of(counts),
    }


def _of_sizes(rehearsal: Rehearsal, called: ResolvedCall, dtype: str, tokens: int | None) -> dict[str, str]:
    halves = 2 if called.guidance != "none" else 1
    images = rehearsal.images * rehearsal.calls // halves
    keys, dense = rehearsal.key_bytes(tokens), rehearsal.dense.total
    ratio = rehearsal.macs.total / dense
    both = f", {memory_in_words(keys / images)} with both guidance halves" if halves == 2 else ""
    batch = f", {memory_in_words(keys)} for the batch of {images}" if images > 1 else ""
    of_other = tokens is not None and tokens != rehearsal.tokens
    return {
        "MACs": f"{ratio:.1%} of the plain model's {dense / 1e12:.4g} T: {1 / ratio:.2f}x allowed",
        "keys, values": f"{memory_in_words(keys / images / halves)} for each image of "
        f"{tokens or rehearsal.tokens} tokens, "
        f"{dtype}{both}{batch}"
        if keys
        else "none are kept: every step is full or skipped",
        **({} if of_other else {"all caches": f"{memory_in_words(rehearsal.cache_bytes)} with this plan's forecasts"}),
    }


def _figures(rehearsal: Rehearsal, tokens: int | None) -> dict[str, Any]:
    """What programs want of the plan and its sizes, as numbers."""
    of_other = tokens is not None and tokens != rehearsal.tokens
    return {
        "tokens": rehearsal.tokens,
        "tokens_of_steps": rehearsal.counts,
        "macs": rehearsal.macs.total,
        "plain_macs": rehearsal.dense.total,
        "key_value_bytes": rehearsal.key_bytes(tokens),
        **({} if of_other else {"cache_bytes": rehearsal.cache_bytes}),
    }
