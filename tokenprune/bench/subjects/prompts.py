"""Where a bench run's prompts come from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from tokenprune.bench.measuring.run import Score
from tokenprune.embedded import scenes
from tokenprune.embedded.scenes import Scene
from tokenprune.embedded.score import summary
from tokenprune.errors import ConfigurationError, one_line

COUNT = 64
"""Prompts taken of captions and data sets where no number is given."""


SPLITS = ("tuning", "held-out")


@dataclass(frozen=True)
class DataSet:
    """A data set with prompts.

    Attributes:
        path: folder, file or hub name.
        column: of text, or of lists of texts, of which the first is taken.
        split: one of the data set's own.
    """

    path: str
    column: str
    split: str = "train"


DATA_SETS = {
    "parti-prompts": DataSet("nateraiw/parti-prompts", "Prompt"),  # arXiv 2206.10789
    "coco-2014": DataSet("sayakpaul/coco-30-val-2014", "caption"),  # arXiv 1405.0312: captions of 30,000 images
    "coco-2017": DataSet("phiyodr/coco2017", "captions", "validation"),  # of 5,000, the CAT Pruning paper's
}


@dataclass(frozen=True)
class Prompts:
    """Prompts, and what they are called in a result file.

    Attributes:
        texts: one for each picture.
        source: where they come from.
        scenes: what each caption describes; None where there is nothing to score a picture against.
    """

    texts: tuple[str, ...]
    source: str
    scenes: tuple[Scene, ...] | None = None

    @property
    def score(self) -> Score | None:
        """Scores pictures of these prompts; None without scenes."""
        scenes = self.scenes
        return None if scenes is None else lambda pictures: summary(pictures, scenes)

    @property
    def digest(self) -> str:
        """The same for the same texts in the same order."""
        return sha256(json.dumps(self.texts).encode()).hexdigest()[:16]


def captions(split: str, count: int | None = None) -> Prompts:
    """The first captions of the embedded models' "tuning" or "held-out" split, with their scenes.

    Raises:
        ConfigurationError: no such split.
    """
    if split not in SPLITS:
        raise ConfigurationError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    texts, shown = zip(*scenes.captions(split, count or COUNT), strict=True)  # type: ignore[arg-type]
    return Prompts(texts, f"captions of the {split} split", shown)


def from_file(path: Path, count: int | None = None) -> Prompts:
    """The first prompts of a text file, or all: one a line; blank lines and those that start with # are passed over.

    Raises:
        ConfigurationError: the file cannot be read, or has fewer prompts.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: expected a text file with prompts: {one_line(error)}") from error
    return _prompts(f"prompts of {path}", (line for line in lines if line and not line.startswith("#")), count)


def from_data_set(name: str, count: int | None = None) -> Prompts:
    """The first prompts of a data set, read through the library `datasets` as far as they go.

    Args:
        name: one of `DATA_SETS`; or `dataset:PATH_OR_NAME#COLUMN`, a folder, a file (csv, tsv, json, jsonl, parquet) or
            a hub name, and @SPLIT behind it where the split is not "train".
        count: how many; 64 by default.

    Raises:
        ConfigurationError: another name, a data set that cannot be loaded or lacks the column, or fewer prompts.
    """
    given = re.fullmatch(r"dataset:([^#]+)#([^#@]+)(?:@(.+))?", name)
    if name not in DATA_SETS and given is None:
        known = ", ".join(DATA_SETS)
        raise ConfigurationError(f"prompts: expected {known} or dataset:PATH_OR_NAME#COLUMN, got {name!r}")
    found = DATA_SETS[name] if given is None else DataSet(*(part for part in given.groups() if part))
    return _prompts(f"prompts of {name}", _texts(found, name), count or COUNT)


def _prompts(source: str, texts: Iterable[str], count: int | None) -> Prompts:
    found = tuple(islice(texts, count))
    if not found or len(found) < (count or 0):
        raise ConfigurationError(f"{source}: expected {count or 'some'}, got {len(found) or 'none'}")
    return Prompts(found, source)


def _texts(of: DataSet, name: str) -> Iterable[str]:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{name}: to read it, install {error.name!r} (the extra 'prompts')") from error
    file = Path(of.path)
    where: dict[str, Any] = {"path": of.path}
    if file.is_file():
        where = {"path": str(file.parent), "data_files": file.name}
    try:
        rows = load_dataset(**where, split=of.split, streaming=True)
        if of.column in (rows.column_names or ()):
            rows = rows.select_columns([of.column])  # pictures, if there are any, stay where they are
        for number, row in enumerate(rows):
            if of.column not in row:
                raise ValueError(f"there are {', '.join(map(str, row))}")
            value = row[of.column]
            text = value[0] if isinstance(value, list) and value else value
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"row {number} holds {value!r}")
            yield text.strip()
    except (OSError, ValueError, RuntimeError) as error:
        expected = f"expected a data set with texts in a column {of.column!r}"
        raise ConfigurationError(f"{name}: {expected}: {one_line(error)}") from error
