"""Whether settings are of the types that their annotations say."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

WORDS: dict[type, str] = {float: "a number", int: "a whole number", bool: "True or False", str: "text"}
"""What values of plain types are called in errors."""

_ACCEPTED: dict[type, type] = {float: Real, int: Integral}
"""Which values count as one of a plain type, beside those of the type itself; truth values are no numbers."""


class SettingTypeError(TypeError, ValueError):
    """A setting is of another type than it can be: a ValueError, too, as are settings out of their ranges."""


class Settings:
    """A base of dataclasses whose settings are checked against their annotations when one is made.

    What an annotation says beyond plain types, literals, tuples, unions and classes is not checked, so that classes of
    other packages may annotate as they like.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Check the settings, then make the object as usual.

        Raises:
            SettingTypeError: one is of another type; the message names it.
        """
        if is_dataclass(cls) and (args or kwargs):
            try:
                given = inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs).arguments
            except TypeError:
                given = {}  # __init__ says what is wrong with the arguments themselves
            kinds = kinds_of(cls)
            for name, value in given.items():
                if name in kinds:
                    check(name, value, kinds[name])
        return super().__new__(cls)


@cache
def kinds_of(cls: type) -> dict[str, Any]:
    """Types of a dataclass's settings by name; without those that cannot be read where the class stands."""
    found: dict[str, Any] = {}
    names = {field.name for field in fields(cls)}
    for owner in reversed(cls.__mro__):
        space = vars(sys.modules.get(owner.__module__, sys))
        for name, kind in inspect.get_annotations(owner).items():
            if name in names:
                found[name] = _read(kind, space, dict(vars(owner)))
    return found


def _read(kind: Any, space: dict[str, Any], own: dict[str, Any]) -> Any:
    if not isinstance(kind, str):
        return kind
    try:
        return eval(kind, space, own)
    except Exception:  # imported for type checkers alone, or a local name
        return Any


def check(name: str, value: Any, kind: Any, example: str = "") -> None:
    """Raise unless a value is of an annotated type.

    Args:
        name: what the setting is called.
        value: the value.
        kind: the type.
        example: one of such a value, as Python.

    Raises:
        SettingTypeError: it is not.
    """
    for place, part, expected in _misfits(name, value, kind):
        such = f", such as {example}" if example else ""
        raise SettingTypeError(f"{place}: expected {described(expected)}{such}, got {part!r}")


def described(kind: Any) -> str:
    """A type in words."""
    if isinstance(kind, TypeVar) or kind is Any:
        return "anything"
    if kind is NoneType:
        return "None"
    if kind in WORDS:
        return WORDS[kind]
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join(described(part) for part in parts)
    if origin is tuple:
        if parts and parts[-1] is Ellipsis:
            return f"a tuple with {described(parts[0])} in each place"
        return f"a tuple of {', '.join(map(described, parts))}"
    name = getattr(origin or kind, "__name__", str(kind))
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def _misfits(place: str, value: Any, kind: Any) -> list[tuple[str, Any, Any]]:
    """Where a value is of another type: place, what is there, and the type that is expected; empty if it fits."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple:
        return _misfits_of_tuple(place, value, kind)
    if origin in (Union, UnionType):
        found = [_misfits(place, value, part) for part in parts]
        if not all(found):
            return []
        return next((misfit for misfit in found if misfit[0][0] != place), [(place, value, kind)])
    if origin is Literal:
        fits = value in parts
    elif kind is Any or origin is not None or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        fits = True  # of which no more is known
    elif kind in (float, int):
        fits = isinstance(value, (kind, _ACCEPTED[kind])) and not isinstance(value, bool)
    else:
        fits = isinstance(value, kind)
    return [] if fits else [(place, value, kind)]


def _misfits_of_tuple(place: str, value: Any, kind: Any) -> list[tuple[str, Any, Any]]:
    kinds = get_args(kind)
    if not isinstance(value, (tuple, list)):
        return [(place, value, kind)]
    if kinds and kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        return [(place, value, kind)]
    pairs = zip(kinds, value, strict=True)
    return [
        misfit for number, (each, part) in enumerate(pairs) for misfit in _misfits(f"{place}[{number}]", part, each)
    ]
