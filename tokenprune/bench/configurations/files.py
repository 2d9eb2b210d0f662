"""Configurations from files of a user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.configurations.suites import fewer_steps
from tokenprune.errors import ConfigurationError
from tokenprune.plans.files import load_plan, mapping_of, plan_of
from tokenprune.plans.formats import read_data
from tokenprune.plans.plan import Plan

LIST = "configuration"
"""The name of the list in a file."""


KEYS = ("name", "steps", "source", "plan_file")
"""What a configuration may say beside the keys of a plan."""


def read_configurations(path: Path, steps: int) -> list[Configuration]:
    """The configurations of a file, after the plain model at its own number of steps and at fewer.

        [[configuration]]
        name = "CAT, linear"
        policy = { name = "CATPolicy", alpha = 0.3 }
        reuse = { name = "Taylor", order = 1 }

    `policy`, `schedule` and `reuse`, or `plan` or `budget`, are a plan as `tokenprune.load_plan` reads it; `plan_file`
    names the file of one instead, from the folder of this one. Without any, the plain model is drawn. `steps` are the
    sampler's, `source` says whose method it is.

    Args:
        path: .toml, .yaml, .yml or .json.
        steps: those of the plain model.

    Raises:
        ConfigurationError: the file cannot be read, or a configuration is malformed; the message names the place.
    """
    content = read_data(path)
    entries = content.get(LIST)
    if set(content) != {LIST} or not isinstance(entries, list) or not entries:
        got = ", ".join(map(str, content)) or "nothing"
        raise ConfigurationError(f"{path}: expected a list {LIST!r} and nothing else, got {got}")
    found = {one.name: one for one in fewer_steps(steps)}
    for number, entry in enumerate(entries, 1):
        one = _read(entry, path, number)
        if one.name in found:
            known = ", ".join(found)
            raise ConfigurationError(f"{path}: {LIST} {number}: name: expected none of {known}, got {one.name!r}")
        found[one.name] = one
    return list(found.values())


def digest(configurations: Sequence[Configuration]) -> str:
    """The same for the same configurations, whatever their file's layout and comments."""
    told = [
        [one.name, one.steps, one.source, one.compiled, str(one.cache_dtype), one.plan and mapping_of(one.plan)]
        for one in configurations
    ]
    return sha256(json.dumps(told).encode()).hexdigest()[:16]


def _read(entry: Any, path: Path, number: int) -> Configuration:
    try:
        return _configuration(entry, path.parent)
    except ConfigurationError as error:
        name = f" ({entry['name']})" if isinstance(entry, Mapping) and "name" in entry else ""
        raise ConfigurationError(f"{path}: {LIST} {number}{name}: {error}") from error


def _configuration(entry: Any, folder: Path) -> Configuration:
    if not isinstance(entry, Mapping):
        raise ConfigurationError(f"expected names with values, got {entry!r}")
    name, steps, source = entry.get("name"), entry.get("steps"), entry.get("source", "")
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"name: expected text, got {name!r}")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise ConfigurationError(f"steps: expected a whole number of at least 1, got {steps!r}")
    if not isinstance(source, str):
        raise ConfigurationError(f"source: expected text, got {source!r}")
    return Configuration(name, _plan(entry, folder), steps, source)


def _plan(entry: Mapping[str, Any], folder: Path) -> Plan | None:
    given = {name: value for name, value in entry.items() if name not in KEYS}
    if "plan_file" not in entry:
        return plan_of(given) if given else None
    if given or not isinstance(entry["plan_file"], str):
        raise ConfigurationError(f"plan_file: expected a path and no {', '.join(given) or 'other'} beside it")
    return load_plan(folder / entry["plan_file"])
