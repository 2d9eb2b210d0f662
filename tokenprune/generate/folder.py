"""Where pictures go: a file and a report for each, written whole or not at all, and the settings of them all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenprune.bench.measuring.result_file import differing
from tokenprune.errors import ConfigurationError, one_line
from tokenprune.generate.jobs import Job
from tokenprune.plans.formats import read_data, write_data

SETTINGS = "settings"
"""Of the file with the settings, which no picture may be called like."""


@dataclass(frozen=True)
class Folder:
    """A folder of pictures.

    A picture NAME is NAME.png with its report NAME.json, which is written last: with both there, it is done. What was
    not drawn for an error has NAME.error in their place.

    Attributes:
        path: of the folder; it is made where it is missing.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """The file that says how the pictures were drawn."""
        return self.path / f"{SETTINGS}.json"

    def claim(self, settings: Mapping[str, Any], jobs: Sequence[Job]) -> None:
        """Write the settings down, or find that those of an earlier run are the same.

        Raises:
            ConfigurationError: pictures are there that were drawn with other settings, or files of something else, or
                a picture is called like the settings.
        """
        if any(job.name == SETTINGS for job in jobs):
            raise ConfigurationError(f"name: expected another one than {SETTINGS!r}, which is the file of settings")
        if self.settings.exists():
            found = read_data(self.settings)
            if not (other := differing(settings, found)):
                return
            if any(self.path.rglob("*.png")):
                told = ", ".join(_difference(name, found.get(name), settings.get(name)) for name in other)
                raise ConfigurationError(
                    f"out: {self.path} has pictures that were drawn with another {told}; choose another folder, or "
                    f"delete this one to draw anew"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ConfigurationError(
                f"out: expected an empty folder, or one with {self.settings.name} of an earlier run, got {self.path}"
            )
        with _writing(self.settings):
            write_data(self.settings, settings)

    def has(self, job: Job) -> bool:
        """Whether a picture is there, with its report."""
        return self._file(job, ".json").exists() and self._file(job, ".png").exists()

    def missing(self, batches: Sequence[Sequence[Job]]) -> list[int]:
        """The places of the batches of which a picture is missing; those that failed before come last."""
        places = [place for place, batch in enumerate(batches) if not all(self.has(job) for job in batch)]
        return sorted(places, key=lambda place: any(self._file(job, ".error").exists() for job in batches[place]))

    def save(self, job: Job, picture: NDArray[np.uint8], report: Mapping[str, Any]) -> None:
        """Write a picture [height, width, 3], then its report.

        Raises:
            ConfigurationError: they cannot be written.
        """
        image = Image.fromarray(picture)
        self._write(job, ".png", lambda path: image.save(path, "PNG"))
        with _writing(self._file(job, ".json")):
            write_data(self._file(job, ".json"), report)
            self._file(job, ".error").unlink(missing_ok=True)

    def fail(self, job: Job, error: str) -> None:
        """Write down why a picture was not drawn."""
        told = {"prompt": job.prompt, "seed": job.seed, "error": error}
        self._write(job, ".error", lambda path: path.write_text(json.dumps(told, indent=1) + "\n"))

    def _file(self, job: Job, suffix: str) -> Path:
        return self.path / f"{job.name}{suffix}"

    def _write(self, job: Job, suffix: str, write: Callable[[Path], object]) -> None:
        path = self._file(job, suffix)
        unfinished = path.with_name(f"{path.name}.tmp")
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(unfinished)
            unfinished.replace(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"out: {path} cannot be written: {one_line(error)}") from error


def _difference(name: str, before: Any, now: Any) -> str:
    """A setting that differs, with its values where they are short."""
    short = all(isinstance(value, (str, int, float, type(None))) for value in (before, now))
    return f"{name} ({before!r}, now {now!r})" if short else name
