"""A module map as the source code of an adapter."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from tokenprune.discovery.arguments import AxesGrid, OneRow, PositionsGrid, ReferencesAfter
from tokenprune.modulemap import ModuleMap

PUBLIC = ("AttentionSite", "BlockSite", "ExitSite", "ModuleMap", "TokenArgument", "latent_grid")
OWN = (AxesGrid, OneRow, PositionsGrid, ReferencesAfter)


def source_of(found: ModuleMap, model: str) -> str:
    """An adapter's source that gives an equal map.

    Args:
        found: a discovered map; readers of other kinds than discovery's become a comment.
        model: what the adapter is for.
    """
    given = {field.name: getattr(found, field.name) for field in fields(found)}
    default = {field.name: field.default for field in fields(found)}
    lines = [
        f"        {name}={_field(value, name != 'constants')},"
        for name, value in given.items()
        if value != default[name]
    ]
    body = "\n".join(lines)
    public = [name for name in PUBLIC if re.search(rf"\b{name}\(", body) or name == "ModuleMap"]
    own = [kind.__name__ for kind in OWN if f"{kind.__name__}(" in body]
    imports = [f"from tokenprune import {', '.join(public)}"]
    imports += [f"from tokenprune.discovery import {', '.join(own)}"] if own else []
    head = "\n".join(["from torch import nn", "", *imports])
    return (
        f'{head}\n\n\ndef module_map(model: nn.Module) -> ModuleMap:\n    """The map of {model}."""\n'
        f"    return ModuleMap(\n{body}\n    )\n"
    )


def _field(value: Any, in_order: bool) -> str:
    if isinstance(value, tuple) and value:
        lines = _shortened(map(_expression, value), in_order)
        return "\n".join(["(", *(f"            {line}," for line in lines), "        )"])
    return _expression(value)


def _expression(value: Any) -> str:
    """An expression for strings, numbers, tuples and data classes; fields at their defaults are left out."""
    if isinstance(value, tuple):
        items = [_expression(item) for item in value]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if is_dataclass(value) and not isinstance(value, type):
        given = [(field, getattr(value, field.name)) for field in fields(value)]
        named = [
            _expression(item) if field.default is MISSING else f"{field.name}={_expression(item)}"
            for field, item in given
            if field.default is MISSING or item != field.default
        ]
        return f"{type(value).__name__}({', '.join(named)})"
    if callable(value):
        return _reader(value)
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _reader(reader: Any) -> str:
    """A grid reader made by `latent_grid`, by what it was made of."""
    held = inspect.getclosurevars(reader).nonlocals if inspect.isfunction(reader) else {}
    if set(held) == {"argument", "sizes"}:
        sizes = held["sizes"]
        square = len(sizes) == 2 and sizes[0] == sizes[1]
        return f'latent_grid("{held["argument"]}", {sizes[0] if square else sizes})'
    return f"...  # {getattr(reader, '__qualname__', type(reader).__name__)}: write a function of the arguments"


def _shortened(expressions: Iterable[str], in_order: bool) -> list[str]:
    """Expressions in a row that differ in the number of a path alone become a generator."""
    pattern = re.compile(r"(?<=\.)(\d+)(?=[.\"])")
    split = [(pattern.sub("{i}", text, count=1), pattern.search(text), text) for text in expressions]
    split = split if in_order else sorted(split, key=lambda each: each[0])
    lines = []
    for template, group in itertools.groupby(split, key=lambda each: each[0]):
        members = list(group)
        numbers = [int(match.group()) for _, match, _ in members if match]
        if len(members) > 1 and numbers == list(range(numbers[0], numbers[0] + len(members))):
            span = f"{numbers[0]}, {numbers[-1] + 1}" if numbers[0] else str(len(members))
            marked = re.sub(r"\"([^\"]*\{i\}[^\"]*)\"", r'f"\1"', template)
            lines.append(f"*({marked} for i in range({span}))")
        else:
            lines += [text for *_, text in members]
    return lines
