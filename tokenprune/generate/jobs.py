"""What is to be drawn: a prompt, a seed and a name for each picture."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from tokenprune.bench.subjects import prompts
from tokenprune.errors import ConfigurationError, one_line

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
"""Of files in the folder, or in folders within it."""


MOST_SEED = 2**63 - 1


FIELDS = ("prompt", "seed", "name")
"""What a line of JSON may say; it has to say the prompt."""


@dataclass(frozen=True)
class Job:
    """One picture.

    Attributes:
        name: of its files, without suffix.
        prompt: what it shows.
        seed: of its initial noise.
    """

    name: str
    prompt: str
    seed: int


def read_jobs(file: Path, first_seed: int = 0, count: int | None = None) -> tuple[Job, ...]:
    """The jobs of a file, or the first ones.

    A text file has a prompt a line, see `tokenprune.bench.subjects.prompts.from_file`. A file that ends in .jsonl has a
    JSON object a line with a `prompt` and, where they are to be other than those of `jobs_of`, a `seed` and a `name`.

    Raises:
        ConfigurationError: the file cannot be read, has fewer prompts, or a line says something else; it is named.
    """
    if file.suffix != ".jsonl":
        return jobs_of(prompts.from_file(file, count).texts, first_seed)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file}: expected lines of JSON: {one_line(error)}") from error
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    found: dict[str, Job] = {}
    for place, (number, line) in enumerate(islice(numbered, count)):
        try:
            job = _job(line, place, first_seed)
            if job.name in found:
                raise ConfigurationError(f"name: expected one of its own, got {job.name!r} again")
        except ConfigurationError as error:
            raise ConfigurationError(f"{file}, line {number}: {error}") from error
        found[job.name] = job
    if not found or len(found) < (count or 0):
        raise ConfigurationError(f"{file}: expected {count or 'some'} prompts, got {len(found) or 'none'}")
    return tuple(found.values())


def jobs_of(texts: Iterable[str], first_seed: int = 0) -> tuple[Job, ...]:
    """Jobs named by their places, 000000 and so on; the seed of the first is given, each further one's is one more."""
    return tuple(_at(place, text, first_seed) for place, text in enumerate(texts))


def batches_of(jobs: Sequence[Job], size: int) -> list[tuple[Job, ...]]:
    """The jobs in groups that are drawn at a time: the same ones whoever draws them, and whatever is there already."""
    return [tuple(jobs[start : start + size]) for start in range(0, len(jobs), size)]


def digest(jobs: Sequence[Job]) -> str:
    """The same for the same jobs in the same order."""
    return sha256(json.dumps([asdict(job) for job in jobs]).encode()).hexdigest()[:16]


def _at(place: int, text: str, first_seed: int) -> Job:
    return Job(f"{place:06d}", text, first_seed + place)


def _job(line: str, place: int, first_seed: int) -> Job:
    try:
        given: Any = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"expected JSON: {one_line(error)}") from error
    if not isinstance(given, Mapping) or not set(given) <= set(FIELDS):
        raise ConfigurationError(f"expected an object with {', '.join(FIELDS)}, got {line.strip()[:80]}")
    text = given.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(f"prompt: expected text, got {text!r}")
    own = _at(place, text.strip(), first_seed)
    seed, name = given.get("seed", own.seed), given.get("name", own.name)
    if type(seed) is not int or not 0 <= seed <= MOST_SEED:
        raise ConfigurationError(f"seed: expected a whole number from 0 to {MOST_SEED}, got {seed!r}")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigurationError(
            f"name: expected letters, digits, '_', '-' and '.', and '/' between folders, got {name!r}"
        )
    return Job(name, own.prompt, seed)
