"""Settings as JSON, YAML or TOML files, by suffix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenprune.errors import ConfigurationError, one_line


def read_data(path: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    YAML needs the package `pyyaml`, TOML Python 3.11.

    Raises:
        ConfigurationError: no such file, another suffix, malformed, not a mapping, or nothing installed that reads it.
    """
    if path.suffix not in _READERS:
        raise ConfigurationError(f"{path}: expected a file that ends in {', '.join(_READERS)}, got {path.suffix!r}")
    try:
        content = _READERS[path.suffix](path.read_text(encoding="utf-8"))
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{path}: to read it, install {error.name!r} or use .json") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path}: expected a readable {path.suffix[1:]} file, got: {one_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: expected names with values, got {type(content).__name__}")
    return content


def write_data(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all; its folder is made where it is missing.

    Raises:
        ConfigurationError: another suffix than .json, .yaml or .yml, or no package to write it.
    """
    if path.suffix not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise ConfigurationError(f"{path}: expected a file that ends in {known} to write, got {path.suffix!r}")
    try:
        text = _WRITERS[path.suffix](content)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{path}: to write it, install {error.name!r} or use .json") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _read_toml(text: str) -> Any:
    import tomllib  # type: ignore[import-not-found]

    return tomllib.loads(text)


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _write_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


def _write_yaml(content: Mapping[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    return text


_READERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".toml": _read_toml,
}


_WRITERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    ".json": _write_json,
    ".yaml": _write_yaml,
    ".yml": _write_yaml,
}

WRITTEN = tuple(_WRITERS)
"""Suffixes of the files that can be written."""
