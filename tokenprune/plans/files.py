"""Plans as data: files and plain mappings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenprune.errors import ConfigurationError
from tokenprune.plans.data import construct, settings_of, value_of
from tokenprune.plans.formats import read_data, write_data
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import best_plan, share_of

PARTS = tuple(field.name for field in fields(Plan))


SHORT: dict[str, type] = {"plan": str, "budget": float}
"""Names that give a plan alone: a preset, or a share of the plain model's token computations."""


def save_plan(plan: Plan, path: str | Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write a plan with all its settings as .json, .yaml or .yml.

    Args:
        plan: of the package's own classes, or policies that a package registered as entry points.
        path: the file; its folder is made where it is missing.
        notes: whatever else the file should say (plain data); `load_plan` passes over it.

    Raises:
        ConfigurationError: another suffix, or a part of the plan that no file can name.
    """
    write_data(Path(path), {**mapping_of(plan), **({"notes": dict(notes)} if notes else {})})


def load_plan(path: str | Path) -> Plan:
    """Read a plan from a .json, .yaml, .yml or .toml file, for `apply(pipe, plan)`.

    Raises:
        ConfigurationError: the file cannot be read, or says something that is no plan; the message names the place.
    """
    content = read_data(Path(path))
    content.pop("notes", None)
    try:
        return plan_of(content)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def plan_of(mapping: Mapping[str, Any]) -> Plan:
    """The plan that a mapping describes.

        plan_of({"policy": {"name": "CATPolicy", "alpha": 0.3}, "reuse": {"name": "Taylor", "order": 1}})
        plan_of({"plan": "balanced"})  # what tokenprune.plan gives; or {"budget": 0.5}

    Args:
        mapping: `policy`, `schedule` and `reuse`, of which the last two may be missing, each with the `name` of its
            class and those of its settings that are not to have their defaults; or `plan` or `budget` alone.

    Raises:
        ConfigurationError: an unknown or missing name, or a setting of another type or out of its range.
    """
    for name, kind in SHORT.items():
        if set(mapping) == {name}:
            try:
                return best_plan(share_of(value_of(kind, mapping[name], name)))
            except ValueError as error:
                raise ConfigurationError(f"{name}: {str(error).partition(': ')[2]}") from error
    if not set(mapping) & set(PARTS):
        got = ", ".join(map(str, mapping)) or "nothing"
        raise ConfigurationError(f"expected {', '.join(PARTS)}, or {' or '.join(SHORT)} alone; got {got}")
    plan: Plan = construct(Plan, mapping, "")
    return plan


def mapping_of(plan: Plan) -> dict[str, Any]:
    """A plan as plain data, with all its settings: `plan_of` makes an equal plan of it.

    Raises:
        ConfigurationError: a part is of a class that no file can name.
    """
    return settings_of(plan)
