"""The tables of `tokenprune macs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from tokenprune.cli.tables import Column, Listing
from tokenprune.schedule import WarmupSchedule

if TYPE_CHECKING:
    from tokenprune.bench.studies.paper_macs import PaperRow
    from tokenprune.macs.breakdown import GenerationMacs, Layer


PARTS = ("linear", "attention")


def of_generations(title: str, generations: Sequence[GenerationMacs]) -> Listing:
    """A row for each number of steps."""
    unit = _Unit(generations[0].total_dense_T)
    rows = []
    for each in generations:
        figures = (each.linear_dense_T, each.linear_pruned_T, each.attention_dense_T, each.attention_pruned_T)
        rows.append(
            [
                str(each.steps),
                str(each.full_steps),
                f"{each.tokens_ratio:.3f}",
                *map(unit.show, figures),
                f"{each.mac_ratio:.3f}",
                f"{each.ideal_speedup:.3f}x",
            ]
        )
    return Listing(
        f"{unit.name} MACs of {title}",
        [
            *map(Column, ("steps", "full", "tokens")),
            *(Column(name, part) for part in PARTS for name in ("dense", "pruned")),
            *map(Column, ("share", "allowed")),
        ],
        rows,
        "linear: linear layers; attention: its products; share, allowed: of all MACs, and the speed ratio they allow",
    )


def of_modules(layers: Sequence[Layer], some: int, tokens: int) -> Listing:
    """Modules below each other; neighbours in a list that cost the same are one row, followed by the first one's."""
    root = layers[0]
    whole = root.linear_full_T + root.attention_full_T
    unit = _Unit(whole)
    rows = []
    for label, layer in _alike_as_one(layers):
        full = layer.linear_full_T + layer.attention_full_T
        figures = (layer.linear_full_T, layer.linear_pruned_T, layer.attention_full_T, layer.attention_pruned_T)
        pruned = layer.linear_pruned_T + layer.attention_pruned_T
        rows.append([label, *map(unit.show, figures), f"{full / whole:.3f}", f"{pruned / full:.3f}"])
    return Listing(
        f"{unit.name} MACs of one call: of all {tokens} tokens (full), of {some} (pruned)",
        [
            Column("module", left=True),
            *(Column(name, part) for part in PARTS for name in ("full", "pruned")),
            Column("of all", "share"),
            Column("of full", "pruned"),
        ],
        rows,
    )


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


def of_paper(rows: Sequence[PaperRow], schedule: WarmupSchedule) -> Listing:
    """The paper's models and methods beside its figures, where the schedule is the paper's."""
    shown = []
    for row in rows:
        methods = (
            ("dense", row.linear_dense_T, row.paper_dense_T, row.total_dense_T),
            ("CAT", row.linear_pruned_T, row.paper_pruned_T, row.total_pruned_T),
            ("AT-EDM", row.linear_at_edm_T, row.paper_at_edm_T, row.total_at_edm_T),
        )
        for method, linear, paper, total in methods:
            figures = (f"{linear:.2f}", _figure(paper), f"{total:.2f}", f"{row.total_dense_T / total:.3f}x")
            shown.append([row.model, str(row.steps), method, *figures])
    return Listing(
        f"Tera MACs of one image, 1024x1024, alpha {schedule.alpha}, {schedule.warmup_steps} full steps",
        [
            Column("model", left=True),
            Column("steps"),
            Column("method", left=True),
            *map(Column, ("linear", "paper", "all", "allowed")),
        ],
        shown,
        "linear: linear layers, as in arXiv 2502.00433; all: with attention products; allowed: speed ratio that all "
        "MACs allow; AT-EDM: one block of all tokens at each pruned step (docs/cat.md)",
        keys=3,
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
