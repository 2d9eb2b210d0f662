"""`tokenprune macs`: operations of a model, or of the paper's models, next to the paper's figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from tokenprune.bench.subjects.transformers import Loaded, load
from tokenprune.cli import options
from tokenprune.cli.inspect import find_map, runs_of
from tokenprune.cli.options import refusing
from tokenprune.cli.paper_macs import MODELS, PAPER_ALPHA, PAPER_WARMUP, _build, _count, _table
from tokenprune.cli.targets import ResolvedCall, Wanted, at_least, call_of, notes_of, plan_of
from tokenprune.errors import ConfigurationError
from tokenprune.macs.counting import Layers
from tokenprune.macs.rehearsal import Rehearsal, rehearse
from tokenprune.plans.plan import Plan
from tokenprune.reports.report import Macs
from tokenprune.schedule import WarmupSchedule


def macs(
    model: Annotated[str | None, typer.Argument(help=f"{options.MODEL} None: the paper's two.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Fraction of image tokens at a pruned step: 0.3.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Full steps at the start: 8.")] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Count multiply-accumulate operations, dense and pruned, of any model, or of the paper's next to its figures.

    The paper's are SD3-medium and PixArt-Sigma (1024x1024, guidance). A model is pruned as the plan or the budget says,
    else by CAT Pruning with alpha and warmup-steps. Runs on the meta device: no weights, no arithmetic.
    """
    with refusing("macs"):
        at_least(steps=min(steps), depth=depth, height=height, width=width, size=size, frames=frames)
        cat = alpha is not None or warmup_steps is not None or (plan is None and budget is None)
        fraction = PAPER_ALPHA if alpha is None and cat else alpha
        warmup = PAPER_WARMUP if warmup_steps is None and cat else warmup_steps
        wanted = Wanted(height or size, width or size, frames, text, None, guidance)
        if model is not None:
            loaded = load(model)
            chosen = plan_of(loaded.model, plan, budget, fraction, warmup)
            report(loaded, wanted, chosen, steps, depth if per_layer else 0, as_json)
            return
        beside = [name for name, value in (("plan", plan), ("budget", budget), ("per-layer", per_layer)) if value]
        if beside or wanted.given() or guidance:
            named = ", ".join([*beside, *wanted.given(), *(["guidance"] if guidance else [])])
            raise ConfigurationError(f"{named}: expected only with a MODEL; the paper's table has its own settings")
        try:
            schedule = WarmupSchedule(fraction or 0, warmup or 0)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        rows = [row for name, shape in MODELS.items() for row in _count(name, *_build(shape), schedule, steps)]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        Console().print(_table(rows, schedule))


TERA = 1e12


@dataclass(frozen=True)
class GenerationMacs:
    """One number of steps; `_T` is tera (10^12) multiply-accumulate operations of all calls."""

    steps: int
    full_steps: int
    tokens_ratio: float
    linear_dense_T: float
    linear_pruned_T: float
    attention_dense_T: float
    attention_pruned_T: float
    total_dense_T: float
    total_pruned_T: float
    mac_ratio: float
    ideal_speedup: float


@dataclass(frozen=True)
class Layer:
    """One module, or list of modules, in a call of all tokens and in one of some."""

    module: str
    kind: str
    linear_full_T: float
    attention_full_T: float
    linear_pruned_T: float
    attention_pruned_T: float


def report(loaded: Loaded, wanted: Wanted, plan: Plan, steps: Sequence[int], depth: int, as_json: bool) -> None:
    """Print what the model computes, with each module down to a depth (0: without modules).

    Raises:
        TokenPruneError: the model cannot be pruned, or its calls are not known.
    """
    found = find_map(loaded)
    called = call_of(loaded, found.map, wanted)
    name = type(loaded.model).__name__
    if called is None:
        raise ConfigurationError(f"{name}: name a factory, module.path:factory, that gives arguments of a call")
    runs = [rehearse(loaded.model, found.map, called.call, plan, number) for number in steps]
    generations = [_generation(run) for run in runs]
    counts = Counter(count for count in runs[0].counts if 0 < count < runs[0].tokens)
    some = counts.most_common(1)[0][0] if counts else runs[0].tokens
    layers = list(_layers(loaded.model, runs[0].layers[runs[0].tokens], runs[0].layers[some], depth)) if depth else []
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
            **({"pruned_call_tokens": some, "layers": [asdict(layer) for layer in layers]} if depth else {}),
        }
        print(json.dumps(content, indent=2))
        return
    console = Console(highlight=False)
    console.print(_totals(name, called, runs, generations))
    for run in runs:
        print(f"tokens of {len(run.counts)} steps: {runs_of(run.counts)}")
    if depth:
        console.print(_tree(layers, some, runs[0].tokens))
    for note in [*notes_of(loaded.model, found.map), *found.notes]:
        print(f"note: {note}")


def _generation(run: Rehearsal) -> GenerationMacs:
    dense, ours = run.dense, run.macs
    return GenerationMacs(
        steps=len(run.counts),
        full_steps=sum(count == run.tokens for count in run.counts),
        tokens_ratio=run.token_ratio,
        linear_dense_T=dense.linear / TERA,
        linear_pruned_T=ours.linear / TERA,
        attention_dense_T=dense.attention / TERA,
        attention_pruned_T=ours.attention / TERA,
        total_dense_T=dense.total / TERA,
        total_pruned_T=ours.total / TERA,
        mac_ratio=ours.total / dense.total,
        ideal_speedup=dense.total / ours.total,
    )


def _layers(model: nn.Module, full: Layers, some: Layers, depth: int) -> Iterator[Layer]:
    """Every module that computes anything, each behind the one it is in; lists count what is in them."""
    for path, module in model.named_modules():
        if len(path.split(".")) > depth:
            continue
        here, pruned = (_within(layers, path, module) for layers in (full, some))
        if here.total:
            figures = (here.linear, here.attention, pruned.linear, pruned.attention)
            yield Layer(path, type(module).__name__, *(figure / TERA for figure in figures))


def _within(layers: Layers, path: str, module: nn.Module) -> Macs:
    if path in layers:
        return layers[path]
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return Macs(0, 0)
    parts = (_within(layers, f"{path}.{name}", part) for name, part in module.named_children())
    return sum(parts, Macs(0, 0))


def _totals(name: str, called: ResolvedCall, runs: Sequence[Rehearsal], generations: Sequence[GenerationMacs]) -> Table:
    grid = " x ".join(map(str, runs[0].grid))
    unit = _Unit(generations[0].total_dense_T)
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"{unit.name} MACs of {name}, {called.size}, {grid} tokens, guidance: {called.guidance}",
        caption="linear: linear layers; attention: its products; share, allowed: of all MACs, and the speed ratio they "
        "allow",
    )
    heads = ("steps", "full", "tokens", "linear\ndense", "\npruned", "attention\ndense", "\npruned", "\nshare")
    for head in (*heads, "\nallowed"):
        table.add_column(head, justify="right", no_wrap=True)
    for each in generations:
        figures = (each.linear_dense_T, each.linear_pruned_T, each.attention_dense_T, each.attention_pruned_T)
        table.add_row(
            str(each.steps),
            str(each.full_steps),
            f"{each.tokens_ratio:.3f}",
            *map(unit.show, figures),
            f"{each.mac_ratio:.3f}",
            f"{each.ideal_speedup:.3f}x",
        )
    return table


def _tree(layers: Sequence[Layer], some: int, tokens: int) -> Table:
    """Modules below each other; neighbours in a list that cost the same are one row, followed by the first one's."""
    root = layers[0]
    whole = root.linear_full_T + root.attention_full_T
    unit = _Unit(whole)
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"{unit.name} MACs of one call: of all {tokens} tokens (full), of {some} (pruned)",
    )
    table.add_column("module", no_wrap=True)
    for head in ("linear\nfull", "\npruned", "attention\nfull", "\npruned", "share\nof all", "pruned\nof full"):
        table.add_column(head, justify="right", no_wrap=True)
    for label, layer in _alike_as_one(layers):
        full = layer.linear_full_T + layer.attention_full_T
        figures = (layer.linear_full_T, layer.linear_pruned_T, layer.attention_full_T, layer.attention_pruned_T)
        table.add_row(
            label,
            *map(unit.show, figures),
            f"{full / whole:.3f}",
            f"{(layer.linear_pruned_T + layer.attention_pruned_T) / full:.3f}",
        )
    return table


def _alike_as_one(layers: Sequence[Layer]) -> Iterator[tuple[str, Layer]]:
    """Labels and layers to show."""
    shown: list[tuple[Layer, str]] = []
    latest: dict[str, int] = {}
    left_out: set[str] = set()
    for layer in layers:
        parent, _, name = layer.module.rpartition(".")
        if parent in left_out:
            left_out.add(layer.module)
        elif name.isdigit() and parent in latest and _cost(shown[latest[parent]][0]) == _cost(layer):
            shown[latest[parent]] = shown[latest[parent]][0], name
            left_out.add(layer.module)
        else:
            latest[parent] = len(shown)
            shown.append((layer, name))
    for layer, last in shown:
        *above, name = layer.module.split(".")
        several = f"{name} to {last}, each" if last != name else name
        yield ("  " * (len(above) + 1) + several if name else layer.kind), layer


def _cost(layer: Layer) -> tuple[object, ...]:
    return astuple(layer)[1:]


class _Unit:
    """Tera, or giga for small models."""

    def __init__(self, largest: float) -> None:
        self.name, self._factor = ("Tera", 1) if largest >= 1 else ("Giga", 1000)

    def show(self, value: float) -> str:
        return "-" if value == 0 else f"{value * self._factor:.3f}"
