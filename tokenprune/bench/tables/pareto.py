"""Fidelity against cost, drawn; from a file: `python -m tokenprune.bench.tables.pareto RESULTS.json PLOT.png`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from tokenprune.bench.commands import run
from tokenprune.bench.measuring.result_file import Results, load
from tokenprune.bench.tables.labels import Label, Marker, place
from tokenprune.reports.outputs import check_output

Row = dict[str, Any]


FEW = 16
"""Up to so many points all are named, not only those that no other beats."""


INK, LIGHT = "#22262b", "#8a8f98"


@dataclass(frozen=True)
class Kind:
    """Configurations that are drawn alike; the colours are Okabe and Ito's, which colour-blind readers can tell apart.

    Attributes:
        label: in the legend.
        colour: of its points.
        marker: their shape.
        size: of the marker, in points.
        holds: whether a row is of this kind.
    """

    label: str
    colour: str
    marker: str
    size: float
    holds: Callable[[Row], bool]


def _from(*beginnings: str) -> Callable[[Row], bool]:
    return lambda row: row["source"].startswith(beginnings)


PLAIN = Kind("plain model, fewer steps", "#000000", "o", 4, lambda row: not row["source"] and row.get("plan") is None)


KINDS = (
    PLAIN,
    Kind("ours", "#D55E00", "*", 9, _from("ours")),
    Kind("CAT and its ablations", "#0072B2", "s", 4.5, _from("arXiv 2502.00433")),
    Kind("step caches", "#009E73", "^", 5.5, _from("step cache")),
    Kind("re-implementations", "#CC79A7", "D", 4.5, _from("re-implementation")),
    Kind("other packages", "#E69F00", "P", 6, _from("diffusers", "cache-dit")),
    Kind("others", "#56B4E9", "X", 6, lambda _: True),
)
"""The first that holds a row is its kind."""


def _plain_seconds(rows: Sequence[Row]) -> float | None:
    found = [row["plain_seconds_per_image"] for row in rows if row.get("plain_seconds_per_image") is not None]
    return median(found) if found else None


@dataclass(frozen=True)
class Panel:
    """What stands on the horizontal axis.

    Attributes:
        field: of a row.
        label: of the axis.
        plain: where the plain model stands, given all rows; None where that was not measured.
    """

    field: str
    label: str
    plain: Callable[[Sequence[Row]], float | None]


PANELS = (
    Panel("seconds_per_image", "seconds per image (less is better)", _plain_seconds),
    Panel("total_mac_ratio", "operations (MACs) as share of the plain model's (less is better)", lambda _: 1.0),
)


def kind_of(row: Row) -> Kind:
    """The kind of a row."""
    return next(kind for kind in KINDS if kind.holds(row))


def front(rows: Sequence[Row], field: str) -> list[Row]:
    """The rows that no other beats, by cost: each nearer to the plain model's pictures than all that cost no more."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row[field], -row["psnr_mean"])):
        if not best or row["psnr_mean"] > best[-1]["psnr_mean"]:
            best.append(row)
    return best


def figure(results: Results) -> Figure:
    """Fidelity against each cost that was measured; against operations in any case."""
    rows = [row for row in results.rows if "error" not in row]
    panels = [PANELS[0], PANELS[1]] if any(row.get(PANELS[0].field) is not None for row in rows) else [PANELS[1]]
    drawn = Figure(figsize=(2 + 6.5 * len(panels), 6.5), dpi=110, layout="constrained")
    drawn.suptitle(_title(results.settings), fontsize=11, color=INK)
    axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel, [row for row in rows if row.get(panel.field) is not None])
    axes[0].set_ylabel("PSNR to the plain model's picture (dB; more is better), 95 % interval", fontsize=9)
    legend = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    drawn.legend(legend.values(), legend.keys(), loc="outside right upper", fontsize=8, frameon=False)
    note = drawn.supxlabel(fill(_note(results), 30 + 100 * len(panels)), fontsize=7, color=LIGHT)
    drawn.draw_without_rendering()  # lays it out, so that it is known how much room names have
    without: list[str] = []
    for axis, panel in zip(axes, panels, strict=True):
        there = [row for row in rows if row.get(panel.field) is not None and row["psnr_mean"] is not None]
        without += _name(axis, there, panel.field)
    if without:
        note.set_text(f"{note.get_text()}. No room for the names of: {'; '.join(dict.fromkeys(without))}")
    return drawn


def plot(results: Results, path: Path) -> None:
    """Write the figure as a PNG."""
    figure(results).savefig(path)


def _draw(axis: Any, panel: Panel, rows: list[Row]) -> None:
    points = [row for row in rows if row["psnr_mean"] is not None]
    for kind in KINDS:
        alike = sorted((row for row in points if kind_of(row) is kind), key=lambda row: row[panel.field])
        if alike:
            axis.errorbar(
                [row[panel.field] for row in alike],
                [row["psnr_mean"] for row in alike],
                [nan if row["psnr_ci95"] is None else row["psnr_ci95"] for row in alike],
                label=kind.label,
                color=kind.colour,
                marker=kind.marker,
                markersize=kind.size,
                linestyle="-" if kind is PLAIN else "none",
                linewidth=1,
                elinewidth=0.7,
                alpha=0.8,
            )
    best = front(points, panel.field)
    costs, decibels = [row[panel.field] for row in best], [row["psnr_mean"] for row in best]
    axis.step(costs, decibels, where="post", color=LIGHT, linestyle="--", linewidth=1, zorder=0, label="Pareto front")
    reference = panel.plain(rows)
    if reference is not None:
        axis.axvline(reference, color=INK, linestyle=":", linewidth=1.2, label="plain model, all steps")
        axis.set_xlabel(panel.label, fontsize=9)
    axis.set_xlim(left=0)
    axis.margins(y=0.08)
    axis.grid(color=LIGHT, alpha=0.2, linewidth=0.5)
    axis.tick_params(labelsize=8, labelleft=True)
    axis.spines[["top", "right"]].set_visible(False)


def _name(axis: Any, points: list[Row], field: str) -> list[str]:
    """Write the names of the front's points, the plain model's steps, and, of few points, of all others.

    Gives the names for which there was no room.
    """
    best = front(points, field)
    few = len(points) <= FEW
    wanted = [row for row in best if kind_of(row) is not PLAIN]
    wanted += [row for row in points if kind_of(row) is PLAIN]
    wanted += [row for row in points if few and kind_of(row) is not PLAIN and row not in best]
    names = {id(row): f"{row['steps']} steps" if kind_of(row) is PLAIN else row["name"] for row in wanted}
    labels = [Label(names[id(row)], row[field], row["psnr_mean"]) for row in wanted]
    return place(axis, labels, [Marker(row[field], row["psnr_mean"], row["psnr_ci95"] or 0) for row in points], INK)


def _title(settings: Mapping[str, Any]) -> str:
    guidance = "" if settings["guidance_scale"] is None else f", guidance {settings['guidance_scale']}"
    return f"{settings['model']}: {settings['prompts']} prompts, {settings['steps']} steps{guidance}"


def _note(results: Results) -> str:
    """Where the figures come from, and what is not drawn."""
    settings = results.settings
    measured = [row for row in results.rows if "error" not in row]
    identical = [row["name"] for row in measured if row["psnr_mean"] is None and kind_of(row) is not PLAIN]
    failed = [row["name"] for row in results.rows if "error" in row]
    lists = {"identical to the plain model, not drawn": identical, "failed, not drawn": failed}
    said = [settings["command"], f"{settings['machine']}, {settings['date']}"]
    return ". ".join([*said, *(f"{what}: {'; '.join(names)}" for what, names in lists.items() if names)])


def main(
    results: Annotated[Path, typer.Argument(help="JSON file of `tokenprune bench`.")],
    picture: Annotated[Path, typer.Argument(help="PNG file to write.")],
) -> None:
    """Draw the plot of a result file."""
    check_output("picture", picture, ".png")
    plot(load(results), picture)


if __name__ == "__main__":
    run(main, "tokenprune.bench.tables.pareto")
