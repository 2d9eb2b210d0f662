"""The result file of a bench run: settings and one row for each configuration, written as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REQUIRED = ("name", "steps", "tokens_ratio", "mac_ratio", "psnr_mean", "psnr_ci95")


class ResultFileError(ValueError):
    """A result file that cannot be read, or that another run wrote."""


@dataclass
class Results:
    """Settings and rows of a run.

    Attributes:
        settings: everything that the rows depend on, and where they were measured.
        rows: one for each configuration, in their order.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any] | None:
        """The row of a configuration, None where it was not measured yet."""
        return next((row for row in self.rows if row["name"] == name), None)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"settings": self.settings, "rows": self.rows}, indent=1) + "\n")
        unfinished.replace(path)


def load(path: Path) -> Results:
    """Read a result file.

    Raises:
        ResultFileError: it is not there, no JSON, or not of this form.
    """
    try:
        content = json.loads(path.read_text())
        results = Results(dict(content["settings"]), list(content["rows"]))
        for row in results.rows:
            missing = [name for name in REQUIRED if name not in row]
            if missing:
                raise ResultFileError(f"{path}: a row lacks {', '.join(missing)}; delete the file to measure anew")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ResultFileError):
            raise
        raise ResultFileError(f"{path}: no result file ({error}); delete it to measure anew") from error
    return results


def resume(path: Path, settings: dict[str, Any], volatile: tuple[str, ...] = ("date", "machine")) -> Results:
    """The results so far, or none; what may differ between the parts of a run is `volatile`.

    Raises:
        ResultFileError: the file was written with other settings, or cannot be read.
    """
    if not path.exists():
        return Results(settings)
    found = load(path)
    names = {*settings, *found.settings} - set(volatile)
    other = sorted(name for name in names if settings.get(name) != found.settings.get(name))
    if other:
        raise ResultFileError(f"{path}: was measured with another {', '.join(other)}; delete it or choose another file")
    return found
