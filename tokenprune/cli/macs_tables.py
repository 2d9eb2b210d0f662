"""The tables of `tokenprune macs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tokenprune.schedule import WarmupSchedule

if TYPE_CHECKING:
    from tokenprune.bench.studies.paper_macs import PaperRow
    from tokenprune.macs.breakdown import GenerationMacs, Layer


def of_generations(title: str, generations: Sequence[GenerationMacs]) -> Table:
    """A row for each number of steps."""
    unit = _Unit(generations[0].total_dense_T)
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"{unit.name} MACs of {title}",
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


def of_modules(layers: Sequence[Layer], some: int, tokens: int) -> Table:
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


def of_paper(rows: Sequence[PaperRow], schedule: WarmupSchedule) -> Table:
    """The paper's models and methods beside its figures, where the schedule is the paper's."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"Tera MACs of one image, 1024x1024, alpha {schedule.alpha}, {schedule.warmup_steps} full steps",
        caption="linear: linear layers, as in arXiv 2502.00433; all: with attention products; allowed: speed "
        "ratio that all MACs allow; AT-EDM: one block of all tokens at each pruned step (docs/cat.md)",
        min_width=74,
    )
    for column in ("model", "steps", "method", "linear", "paper", "all", "allowed"):
        table.add_column(column, justify="left" if column in ("model", "method") else "right", no_wrap=True)
    for row in rows:
        methods = (
            ("dense", row.linear_dense_T, row.paper_dense_T, row.total_dense_T),
            ("CAT", row.linear_pruned_T, row.paper_pruned_T, row.total_pruned_T),
            ("AT-EDM", row.linear_at_edm_T, row.paper_at_edm_T, row.total_at_edm_T),
        )
        for place, (method, linear, paper, total) in enumerate(methods):
            table.add_row(
                "" if place else row.model,
                "" if place else str(row.steps),
                method,
                f"{linear:.2f}",
                _figure(paper),
                f"{total:.2f}",
                f"{row.total_dense_T / total:.3f}x",
            )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
