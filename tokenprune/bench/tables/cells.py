"""Result files as tables: of quality, and of costs where the run was timed; also inside documents between two marks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenprune.bench.measuring.fidelity import in_words
from tokenprune.bench.measuring.quality import METRICS, ci95_field, mean_field
from tokenprune.bench.measuring.result_file import COMPARED, Results
from tokenprune.bench.measuring.speed import in_words as speed_in_words

Row = dict[str, Any]


Cells = tuple[list[str], list[list[str]]]
"""Column names, and the cells of each row."""


NONE = "-"


def figure(name: str, show: str, unit: float = 1.0) -> Callable[[Row], str]:
    """A cell: the figure of that name in some unit, by a format; `NONE` where there is none."""
    return lambda row: NONE if row.get(name) is None else format(row[name] / unit, show)


def with_spread(name: str, show: str, unit: float = 1.0) -> Callable[[Row], str]:
    """The same with the figure's interquartile range in brackets."""
    value, spread = figure(name, show, unit), figure(f"{name}_spread", show, unit)
    return lambda row: NONE if value(row) == NONE else f"{value(row)} ({spread(row)})"


def with_interval(mean: str, ci95: str, show: str) -> Callable[[Row], str]:
    """A cell: a mean and, where it is known, half the width of its 95 % interval."""
    value, half = figure(mean, show), figure(ci95, show)
    return lambda row: value(row) if NONE in (value(row), half(row)) else f"{value(row)} ± {half(row)}"


def speed(name: str) -> Callable[[Row], str]:
    """A cell: a ratio of times; where it says nothing, that it is noise."""
    return lambda row: NONE if row.get(name) is None else speed_in_words(row[name], row.get(f"{name}_noise"))


def fidelity(row: Row) -> str:
    """A cell: the PSNR, with how many pictures it leaves out because they are identical."""
    identical = sum(value is None for value in row.get("psnr_of_each") or ())
    return in_words(row["psnr_mean"], row["psnr_ci95"], identical)


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "": lambda row: str(row["name"]),
    "source": lambda row: str(row["source"]),
    "tokens": figure("tokens_ratio", ".2f"),
    "MACs": figure("total_mac_ratio", ".2f"),
    "PSNR (dB)": fidelity,
    "SSIM": figure("ssim_mean", ".4f"),
    "scene score": figure("scene_score", ".1%"),
}


CLOCK: Mapping[str, Callable[[Row], str]] = {
    "": COLUMNS[""],
    "s/image (IQR)": with_spread("seconds_per_image", ".3f"),
    "ms/step (IQR)": with_spread("seconds_per_step", ".1f", 1e-3),
    "speed": speed("speedup"),
    "in the model": speed("transformer_speedup"),
    "allowed": figure("ideal_speedup", ".2f"),
    "reached": figure("reached", ".0%"),
}


OVERHEADS: Mapping[str, Callable[[Row], str]] = {
    "": COLUMNS[""],
    "selection": figure("selection_share", ".1%"),
    "hooks": figure("hook_overhead", "+.1%"),
    "peak (MiB)": figure("peak_memory_bytes", ".1f", 2**20),
    "caches (MiB)": figure("cache_bytes", ".1f", 2**20),
}


COSTS = {**CLOCK, **OVERHEADS}


def source_line(results: Results) -> str:
    """Where the figures come from."""
    settings = results.settings
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    guidance = "" if settings["guidance_scale"] is None else f", guidance {settings['guidance_scale']}"
    in_bytes = "" if settings.get("compared") == COMPARED else ", both rounded to 8 bits"
    return (
        f"`{settings['command']}`: {settings['model']}, {_prompts(settings)}, {settings['steps']} steps{guidance}; "
        f"mean and 95 % interval over the pictures, against the plain model's of the same seed{in_bytes}; tokens and "
        f"MACs (linear layers and attention) as shares of its own. {_timing(settings)}{settings['machine']}, "
        f"{versions}, {settings['date']}."
    )


def cells(results: Results, by_psnr: bool = True) -> Cells:
    """The table of quality: by PSNR, or in the rows' own order with a column for each attribute of the score."""
    columns = {**COLUMNS, **_metrics(results)}
    if not by_psnr:
        del columns["source"]
        for name in next((row["attributes"] for row in results.rows if "attributes" in row), {}):
            columns[name] = lambda row, name=name: f"{row['attributes'][name]:.0%}"  # type: ignore[misc]
    return _fill(columns, results, by_psnr)


def cost_cells(results: Results, by_psnr: bool = True, columns: Mapping[str, Callable[[Row], str]] = COSTS) -> Cells:
    """The table of costs, in the same order, or the part of it that a narrow screen has room for."""
    return _fill(columns, results, by_psnr)


def failures(results: Results) -> list[str]:
    """A line for each configuration that raised an error."""
    return [f"{row['name']}: {row['error']}" for row in results.rows if "error" in row]


def noises(results: Results) -> list[str]:
    """A line for each configuration whose speed says nothing, with the reason."""
    reasons = {row["name"]: row.get("speedup_noise") or row.get("transformer_speedup_noise") for row in results.rows}
    return [f"{name}: noise: {reason}" for name, reason in reasons.items() if reason is not None]


def is_timed(results: Results) -> bool:
    """Whether the table of costs has seconds."""
    return bool(results.settings.get("repeats"))


def markdown(results: Results, by_psnr: bool = True) -> str:
    """The tables with their source, and the errors."""
    lines = [source_line(results), "", *table_of(*cells(results, by_psnr))]
    if is_timed(results):
        lines += ["", *table_of(*cost_cells(results, by_psnr))]
        lines += ["", *(f"- {line}" for line in noises(results))] if noises(results) else []
    if failed := failures(results):
        lines += ["", *(f"- `{line.replace('`', chr(39))}`" for line in failed)]
    return "\n".join(lines) + "\n"


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


def _metrics(results: Results) -> dict[str, Callable[[Row], str]]:
    """A column for each metric that some row has."""
    named = {name: metric for name, metric in METRICS.items() if any(mean_field(name) in row for row in results.rows)}
    return {each.title: with_interval(mean_field(name), ci95_field(name), each.show) for name, each in named.items()}


def _fill(columns: Mapping[str, Callable[[Row], str]], results: Results, by_psnr: bool) -> Cells:
    rows = sorted(results.rows, key=_place) if by_psnr else results.rows
    return list(columns), [_cells_of(row, columns) for row in rows]


def _place(row: Row) -> tuple[bool, bool, float]:
    """Identical pictures first, then by PSNR, then what failed."""
    psnr = row.get("psnr_mean")
    return "error" in row, psnr is not None, -(psnr or 0.0)


def _cells_of(row: Row, columns: Mapping[str, Callable[[Row], str]]) -> list[str]:
    """Of a failed row the error's class stands in place of the first figure."""
    if "error" not in row:
        return [cell(row) for cell in columns.values()]
    named = [columns[name](row) for name in columns if name in ("", "source")]
    return [*named, row["error"].partition(":")[0], *[NONE] * (len(columns) - len(named) - 1)]


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in rows)]


def _prompts(settings: Mapping[str, Any]) -> str:
    if "split" in settings:
        return f"{settings['prompts']} captions of the {settings['split']} split"
    return f"{settings['prompts']} prompts of {settings['prompts_source']}"


def _timing(settings: Mapping[str, Any]) -> str:
    if not settings.get("repeats"):
        return ""
    return (
        f"Timed in {_several(settings['repeats'], 'pair')} with the plain model, "
        f"{_several(settings['timing_batch'], 'picture')} at a time, {_several(settings['threads'], 'thread')}: "
        f"medians, interquartile ranges in brackets, speeds as multiples of the plain model's. "
    )


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
