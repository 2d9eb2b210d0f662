"""`tokenprune inspect`: where pruning takes hold of a model."""

from __future__ import annotations

import importlib
import inspect as introspection
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from tokenprune.discovery import discover
from tokenprune.discovery.code import source_of
from tokenprune.discovery.watch import Inputs, attention_shapes
from tokenprune.errors import TokenPruneError, UnknownModelError
from tokenprune.grid import num_tokens
from tokenprune.modulemap import ModuleMap
from tokenprune.registry import find_adapter, transformer_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _BadInputError(ValueError):
    """What the user gave cannot be inspected; one line."""


@dataclass(frozen=True)
class _Loaded:
    """A model and, if a factory gave them, arguments of a call of it."""

    model: nn.Module
    inputs: Inputs | None


def inspect(
    target: Annotated[
        str,
        typer.Argument(
            help="Directory of a diffusers model or pipeline, or module.path:factory, a function that gives a model or "
            "(model, arguments of a call by name)."
        ),
    ],
    code: Annotated[bool, typer.Option("--code", help="Print the map as an adapter's source code.")] = False,
    tokens: Annotated[int | None, typer.Option(min=1, help="Image tokens to reckon the caches for.")] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the caches: float32, float16 or bfloat16.")] = "float16",
) -> None:
    """Show a model's map, an adapter's or discovered: entry, attention modules, exit, token grid, caches."""
    try:
        if dtype not in DTYPES:
            raise _BadInputError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        loaded = _load(target)
        found, origin, notes = _map_of(loaded)
    except (_BadInputError, TokenPruneError) as error:
        typer.echo(f"tokenprune inspect: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
    name = type(loaded.model).__name__
    if code:
        print(source_of(found, name), end="")
        return
    console = Console(highlight=False)
    console.print(_table(loaded, found, origin, tokens, DTYPES[dtype]))
    for note in notes:
        console.print(f"note: {note}")


def _map_of(loaded: _Loaded) -> tuple[ModuleMap, str, tuple[str, ...]]:
    try:
        adapter = find_adapter(loaded.model)
    except UnknownModelError as error:
        if loaded.inputs is None:
            raise _BadInputError(
                f"{type(loaded.model).__name__}: no adapter describes this model; to have it discovered, name a "
                f"factory that gives (model, arguments of a call by name)"
            ) from error
        found = discover(loaded.model, (), dict(loaded.inputs))
        return found.map, "discovered", found.notes
    return adapter(loaded.model), "from its adapter", ()


def _table(loaded: _Loaded, found: ModuleMap, origin: str, tokens: int | None, dtype: torch.dtype) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, show_header=False, title=f"{type(loaded.model).__name__}, {origin}")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    sites, first = found.block_sites, found.block_sites[0]
    per_layout = {
        site.layout: sum(each.layout == site.layout for each in found.attentions) for site in found.attentions
    }
    rows = {
        "entry": f"{first.path}, of {len(sites)} blocks up to {sites[-1].path}",
        "gathered": ", ".join(dict.fromkeys(each.name for site in sites for each in site.tokens))
        or "nothing in blocks",
        "model arguments": ", ".join(dict.fromkeys(each.name for each in found.inputs)) or "none gathered",
        "attention": ", ".join(f"{count} x {layout}" for layout, count in per_layout.items()),
        "constants": f"{len(found.constants)} layers that see {found.text!r} alone" if found.constants else "none",
        "exit": f"{found.exit_site.path} ({found.exit_site.layout})",
        "latents, time": f"{found.latents}, {found.time}" + (" (rises)" if found.time_rises else ""),
        "selection": "one for the whole batch" if found.shared else "one for each image",
    }
    if loaded.inputs is not None:
        grid = found.grid(loaded.inputs)
        rows["token grid"] = f"{' x '.join(map(str, grid))} = {num_tokens(grid)} tokens"
        rows["keys, values"] = _caches(loaded.model, loaded.inputs, found, tokens, dtype)
    for row in rows.items():
        table.add_row(*row)
    return table


def _caches(model: nn.Module, inputs: Inputs, found: ModuleMap, tokens: int | None, dtype: torch.dtype) -> str:
    own = num_tokens(found.grid(inputs)) + (sum(found.references(inputs)) if found.references else 0)
    wanted = tokens or own
    paths = {site.path for site in found.attentions}
    numbers = sum(
        (wanted + length - own) * channels
        for path, length, channels in attention_shapes(model, inputs)
        if path in paths
    )
    size = numbers * torch.empty((), dtype=dtype).element_size()
    return f"{size / 2**20:.1f} MiB for each image of {wanted} tokens, {str(dtype).removeprefix('torch.')}"


def _load(target: str) -> _Loaded:
    if Path(target).is_dir():
        return _Loaded(_from_directory(Path(target)), None)
    module, colon, name = target.partition(":")
    if not colon:
        raise _BadInputError(f"{target}: neither a directory nor module.path:factory")
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise _BadInputError(f"{target}: {type(error).__name__}: {error}") from error
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    model = transformer_of(model).eval()
    if inputs is not None:
        try:
            introspection.signature(model.forward).bind(**inputs)
        except TypeError as error:
            raise _BadInputError(f"{target}: the arguments do not fit the model's forward: {error}") from error
    return _Loaded(model, inputs)


def _from_directory(folder: Path) -> nn.Module:
    """The model without its weights, on the meta device: an adapter needs no more."""
    import diffusers

    if (folder / "model_index.json").is_file():
        folder = folder / "transformer"
    config = folder / "config.json"
    if not config.is_file():
        raise _BadInputError(f"{folder}: expected a diffusers model, found no config.json")
    try:
        settings: dict[str, Any] = json.loads(config.read_text())
        kind = getattr(diffusers, settings["_class_name"])
        with torch.device("meta"):
            model: nn.Module = kind.from_config(settings)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _BadInputError(f"{config}: {type(error).__name__}: {error}") from error
    return model
