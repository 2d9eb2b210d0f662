"""Result files as Markdown, also inside documents between two marks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenprune.bench.results import Results

Row = dict[str, Any]

COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda row: str(row["name"]),
    "source": lambda row: str(row["source"]),
    "tokens": lambda row: f"{row['tokens_ratio']:.2f}",
    "MACs": lambda row: f"{row['total_mac_ratio']:.2f}",
    "PSNR (dB)": lambda row: "-" if row["psnr_mean"] >= 99 else f"{row['psnr_mean']:.1f} ± {row['psnr_ci95']:.1f}",
    "SSIM": lambda row: f"{row['ssim_mean']:.4f}",
    "scene score": lambda row: f"{row['scene_score']:.1%}" if "scene_score" in row else "-",
}


def source_line(results: Results) -> str:
    """Where the figures come from."""
    settings = results.settings
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    return (
        f"`{settings['command']}`: {settings['model']}, {settings['prompts']} captions of the {settings['split']} "
        f"split, {settings['steps']} steps, guidance {settings['guidance_scale']}; mean and 95 % interval over the "
        f"pictures, against the plain model's of the same seed; tokens and MACs (linear layers and attention) as "
        f"shares of its own. {settings['machine']}, {versions}, {settings['date']}."
    )


def cells(results: Results, by_psnr: bool = True) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: by PSNR, or in the rows' own order with a column for each attribute of the score."""
    rows = sorted(results.rows, key=lambda row: -row["psnr_mean"]) if by_psnr else results.rows
    columns = dict(COLUMNS)
    if not by_psnr:
        del columns["source"]
        for name in rows[0].get("attributes", {}):
            columns[name] = lambda row, name=name: f"{row['attributes'][name]:.0%}"  # type: ignore[misc]
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def markdown(results: Results, by_psnr: bool = True) -> str:
    """The table with its source."""
    columns, rows = cells(results, by_psnr)
    lines = [source_line(results), "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def marks(name: str) -> tuple[str, str]:
    """The two lines of a document between which the table of a result file stands."""
    return f"<!-- {name}: start -->\n", f"<!-- {name}: end -->\n"


def renew(document: Path, name: str, table: str) -> None:
    """Put a table between its marks.

    Raises:
        ValueError: the document lacks them.
    """
    start, end = marks(name)
    text = document.read_text()
    if start not in text or end not in text:
        raise ValueError(f"{document}: expected the lines {start.strip()!r} and {end.strip()!r}")
    before, rest = text.split(start)
    document.write_text(before + start + table + end + rest.split(end)[1])
