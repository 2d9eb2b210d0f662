"""Parts of plans as plain data, and back, by the types of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import singledispatch
from inspect import isabstract
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from tokenprune import held_text, placement, policies, reuse, schedule
from tokenprune.errors import ConfigurationError, one_line
from tokenprune.installed import load, names_in
from tokenprune.plans.imported import FORM, imported, of_kind, place_of
from tokenprune.policies.base import SelectionPolicy
from tokenprune.policies.registry import POLICIES
from tokenprune.reuse.base import Reuse
from tokenprune.reuse.corrector import Corrector
from tokenprune.schedule import Schedule


def _classes(kind: type, *modules: ModuleType) -> dict[str, type]:
    found = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    ours = {name: value for name, value in found.items() if issubclass(value, kind) and not isabstract(value)}
    return {name: value for name, value in ours.items() if is_dataclass(value)}  # their settings are what files hold


OWN: dict[type, dict[str, type]] = {
    SelectionPolicy: _classes(SelectionPolicy, policies),
    Schedule: _classes(Schedule, schedule, placement, held_text),
    Reuse: _classes(Reuse, reuse),
    Corrector: {Corrector.__name__: Corrector},
}
"""The package's own, by kind and name."""


GROUPS: dict[type, str] = {
    SelectionPolicy: POLICIES,
    Schedule: "tokenprune.schedules",
    Reuse: "tokenprune.forecasts",
}
"""Groups of entry points in which other packages offer theirs, by kind."""


def names_of(kind: type) -> list[str]:
    """Names of all classes of a kind: `SelectionPolicy`, `Schedule`, `Reuse` or `Corrector`."""
    others = names_in(GROUPS[kind]) if kind in GROUPS else []
    return [*OWN[kind], *(name for name in others if name not in OWN[kind])]


def find_part(kind: type, name: Any, place: str) -> type:
    """The class of a kind by a name that `names_of` lists, or by `module.path:Class`.

    Raises:
        ConfigurationError: there is none, it is of another kind, or its settings cannot be told.
    """
    if isinstance(name, str) and name in OWN[kind]:
        return OWN[kind][name]
    known = name in names_of(kind)
    if not known and (not isinstance(name, str) or ":" not in name):
        raise ConfigurationError(f"{place}: expected one of {', '.join(names_of(kind))}, or {FORM}, got {name!r}")
    try:
        found = of_kind(name, load(GROUPS[kind], name) if known else imported(name), kind)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from error
    if isabstract(found) or not is_dataclass(found):
        raise ConfigurationError(
            f"{place}: {name}: expected a class that can be made and is a dataclass, whose fields are its settings"
        )
    return found


def _registered(kind: type, name: str) -> type | None:
    """What goes by this name; None where a package offers something that cannot be imported."""
    try:
        return find_part(kind, name, name)
    except ConfigurationError:
        return None


def name_of(part: Any) -> str:
    """The name of a policy's, schedule's or reuse's class; `module.path:Class` of one that is nowhere registered.

    Raises:
        ConfigurationError: a file cannot name it, as it is made in a function or in the script that runs.
    """
    kind = next(kind for kind in OWN if isinstance(part, kind))
    for name in names_of(kind):
        if _registered(kind, name) is type(part):
            return name
    place = place_of(type(part))
    if place is None or not is_dataclass(part):
        raise ConfigurationError(
            f"{type(part).__name__}: expected one of {', '.join(names_of(kind))}, or a dataclass in a module of its "
            f"own, which a file can name as {FORM}"
        )
    return place


@singledispatch
def written(value: Any) -> Any:
    """A setting, or a part of a plan, as plain data.

    Raises:
        ConfigurationError: it is nothing that a file can hold.
    """
    raise ConfigurationError(f"expected settings that a file can hold, got a {type(value).__name__}: {value!r}")


@written.register(bool)
@written.register(str)
@written.register(NoneType)
def _(value: Any) -> Any:
    return value


@written.register
def _(value: int) -> int:
    return int(value)


@written.register
def _(value: float) -> float:
    return float(value)


@written.register(list)
@written.register(tuple)
def _(value: Any) -> list[Any]:
    return [written(each) for each in value]


@written.register
def _(value: Tensor) -> Any:
    return value.tolist()


@written.register(SelectionPolicy)
@written.register(Schedule)
@written.register(Reuse)
@written.register(Corrector)
def _(value: Any) -> dict[str, Any]:
    return {"name": name_of(value), **settings_of(value)}


def settings_of(value: Any) -> dict[str, Any]:
    """The settings of a dataclass by name, as plain data."""
    return {field.name: written(getattr(value, field.name)) for field in fields(value) if field.init}


def construct(kind: type, given: Mapping[str, Any], place: str) -> Any:
    """An instance of a dataclass with the given settings."""
    known = {field.name: field for field in fields(kind) if field.init}
    needed = {name for name, field in known.items() if field.default is field.default_factory is MISSING}
    unknown, missing = sorted(map(str, set(given) - set(known))), sorted(needed - set(given))
    for what, names in (("got unknown", unknown), ("lacks", missing)):
        if names:
            of = f"{place}: " if place else ""
            raise ConfigurationError(f"{of}expected {', '.join(known)}; {what} {', '.join(names)}")
    hints = _hints(kind)
    values = {name: value_of(hints.get(name), value, f"{place}.{name}".lstrip(".")) for name, value in given.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{place}.{one_line(error)}") from error


def _hints(kind: type) -> dict[str, Any]:
    """Types of a class's settings; none where another package imports them for the type checker alone."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {}


def value_of(kind: Any, given: Any, place: str) -> Any:
    """What is given as a value of that type; as it is where the type is not one of ours."""
    reader = _READERS.get(get_origin(kind) or kind)
    return given if reader is None else reader(kind, given, place)


def _scalar(kind: type, given: Any, place: str) -> Any:
    allowed = (int, float) if kind is float else kind
    if not isinstance(given, allowed) or isinstance(given, bool) != (kind is bool):
        raise ConfigurationError(f"{place}: expected {_WORDS[kind]}, got {given!r}")
    return kind(given)


def _one_of(kind: Any, given: Any, place: str) -> Any:
    if given not in get_args(kind):
        raise ConfigurationError(f"{place}: expected one of {', '.join(map(str, get_args(kind)))}, got {given!r}")
    return given


def _either(kind: Any, given: Any, place: str) -> Any:
    options = [option for option in get_args(kind) if option is not NoneType]
    if given is None and NoneType in get_args(kind):
        return None
    return value_of(options[0], given, place) if len(options) == 1 else given


def _tuple(kind: Any, given: Any, place: str) -> tuple[Any, ...]:
    kinds = get_args(kind)
    if not isinstance(given, (list, tuple)):
        raise ConfigurationError(f"{place}: expected a list, got {given!r}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(given)
    if len(kinds) != len(given):
        raise ConfigurationError(f"{place}: expected a list of {len(kinds)}, got {given!r}")
    pairs = zip(kinds, given, strict=True)
    return tuple(value_of(each, value, f"{place}[{number}]") for number, (each, value) in enumerate(pairs))


def _tensor(kind: Any, given: Any, place: str) -> Tensor:
    try:
        return torch.tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{place}: expected nested lists of equal lengths: {one_line(error)}") from error


def _part(kind: type, given: Any, place: str) -> Any:
    """A policy, schedule or reuse: the class that `name` says, with the other settings."""
    if not isinstance(given, Mapping) or "name" not in given:
        raise ConfigurationError(f"{place}: expected the name of a {kind.__name__} and its settings, got {given!r}")
    found = find_part(kind, given["name"], f"{place}.name")
    return construct(found, {name: value for name, value in given.items() if name != "name"}, place)


_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


_READERS: dict[Any, Any] = {
    **dict.fromkeys(_WORDS, _scalar),
    **dict.fromkeys(OWN, _part),
    **dict.fromkeys((Union, UnionType), _either),
    Literal: _one_of,
    Tensor: _tensor,
    tuple: _tuple,
}
