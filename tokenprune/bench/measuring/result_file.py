"""The result file of a bench run: settings and one row for each configuration, written as they come."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    ValidationError,
)

from tokenprune.bench.measuring.fidelity import psnr_summary, students_t
from tokenprune.errors import TokenPruneError

FORMAT = 2
"""Of the files that are written. Files of the first one, which do not say theirs, are read as well: see `_renewed`."""


COMPARED = "float"
"""What PSNR and SSIM are of: pictures as they come from the decoder. Files that do not say so compared bytes."""


VOLATILE = ("date", "machine")
"""Settings that may differ between the parts of a run that times nothing; the date may in any."""


class ResultFileError(TokenPruneError, ValueError):
    """A result file that cannot be read, or that another run wrote."""


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Failed(_Row):
    """A row of a configuration that raised an error."""

    name: str
    source: str
    steps: PositiveInt
    error: str


class Measured(_Row):
    """A row of figures; docs/benchmarking.md says what they mean. Files from before the bench timed lack the last."""

    name: str
    source: str
    steps: PositiveInt
    tokens_ratio: NonNegativeFloat | None
    mac_ratio: NonNegativeFloat
    total_mac_ratio: NonNegativeFloat
    psnr_mean: float | None
    psnr_ci95: NonNegativeFloat | None
    ssim_mean: float
    model: str | None = None
    prompts: PositiveInt | None = None
    psnr_of_each: list[float | None] | None = None
    ideal_speedup: NonNegativeFloat | None = None
    cache_bytes: NonNegativeInt | None = None
    scene_score: NonNegativeFloat | None = None
    lpips_mean: float | None = None
    lpips_ci95: NonNegativeFloat | None = None
    clip_score_mean: float | None = None
    clip_score_ci95: NonNegativeFloat | None = None
    clip_iqa_mean: float | None = None
    clip_iqa_ci95: NonNegativeFloat | None = None
    pick_score_mean: float | None = None
    pick_score_ci95: NonNegativeFloat | None = None
    attributes: dict[str, float] | None = None
    seconds_per_image: NonNegativeFloat | None = None
    seconds_per_image_spread: NonNegativeFloat | None = None
    seconds_per_step: NonNegativeFloat | None = None
    seconds_per_step_spread: NonNegativeFloat | None = None
    plain_seconds_per_image: NonNegativeFloat | None = None
    speedup: NonNegativeFloat | None = None
    speedup_spread: NonNegativeFloat | None = None
    speedup_noise: str | None = None
    transformer_speedup: NonNegativeFloat | None = None
    transformer_speedup_spread: NonNegativeFloat | None = None
    transformer_speedup_noise: str | None = None
    reached: NonNegativeFloat | None = None
    selection_share: NonNegativeFloat | None = None
    hook_overhead: float | None = None
    peak_memory_bytes: int | None = None


def _kind(row: Any) -> str:
    return "failed" if isinstance(row, dict) and "error" in row else "measured"


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    format: Literal[1, 2] = 1
    settings: dict[str, Any]
    rows: list[Annotated[Annotated[Failed, Tag("failed")] | Annotated[Measured, Tag("measured")], Discriminator(_kind)]]


@dataclass
class Results:
    """Settings and rows of a run.

    Attributes:
        settings: everything that the rows depend on, and where they were measured.
        rows: one for each configuration, in their order: `Measured` or `Failed`.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any] | None:
        """The row of a configuration, None where it was not measured yet."""
        return next((row for row in self.rows if row["name"] == name), None)

    def put(self, row: dict[str, Any]) -> None:
        """Add a row, or replace that of the same name."""
        places = [place for place, known in enumerate(self.rows) if known["name"] == row["name"]]
        if places:
            self.rows[places[0]] = row
        else:
            self.rows.append(row)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        content = {"format": FORMAT, "settings": self.settings, "rows": self.rows}
        unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        unfinished.replace(path)


def load(path: Path) -> Results:
    """Read a result file.

    Raises:
        ResultFileError: it is not there, no JSON, or not of this form.
    """
    try:
        content = json.loads(path.read_text())
        _File.model_validate(content)
    except ValidationError as error:
        raise ResultFileError(f"{path}: {_first(error)}; delete the file to measure anew") from error
    except (OSError, ValueError) as error:
        raise ResultFileError(f"{path}: no result file ({error}); delete it to measure anew") from error
    settings, rows = content["settings"], content["rows"]
    if content.get("format", 1) == 1:
        rows = [_renewed(row, settings) for row in rows]
    return Results(settings, rows)


def resume(path: Path, settings: dict[str, Any], volatile: tuple[str, ...] = VOLATILE) -> Results:
    """The results so far, or none; what may differ between the parts of a run is `volatile`, beside the date.

    Raises:
        ResultFileError: the file was written with other settings, or cannot be read.
    """
    if not path.exists():
        return Results(settings)
    found = load(path)
    if other := differing(settings, found.settings, ("date", *volatile)):
        raise ResultFileError(f"{path}: was measured with another {', '.join(other)}; delete it or choose another file")
    return found


def differing(settings: Mapping[str, Any], others: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """Names of the settings that two runs do not share, sorted; those in `but` may differ."""
    return sorted(name for name in {*settings, *others} - {*but} if settings.get(name) != others.get(name))


FIRST_IDENTICAL, FIRST_QUANTILE = 99.0, 1.96
"""In files of the first format: the PSNR of identical pictures, and the normal quantile that intervals were made by."""


def _renewed(row: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the first format as it would be written today, its intervals widened to those of Student's t."""
    pictures = row.get("prompts") or settings.get("prompts") or 0
    wider = students_t(pictures) / FIRST_QUANTILE if pictures > 1 else None
    renewed = dict(row)
    for name, value in row.items():
        if name.endswith("_ci95"):
            renewed[name] = None if wider is None or value is None else value * wider
    if "psnr_of_each" in row:
        renewed["psnr_of_each"] = [None if value == FIRST_IDENTICAL else value for value in row["psnr_of_each"]]
        if None in renewed["psnr_of_each"]:
            renewed["psnr_mean"], renewed["psnr_ci95"] = psnr_summary(renewed["psnr_of_each"])
    elif row.get("psnr_mean") == FIRST_IDENTICAL:
        renewed["psnr_mean"] = renewed["psnr_ci95"] = None
    return renewed


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"] if part not in ("failed", "measured")) or "the file"
    return f"{where}: {found['msg'].lower()}, got {found['input']!r:.60}"
