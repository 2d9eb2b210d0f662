"""Finding the module map of a model that nobody wrote an adapter for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.discovery import arguments, parts, verify
from tokenprune.discovery.parts import Pair, Sizes, Undiscovered
from tokenprune.discovery.texts import find_constants, find_noise_channels
from tokenprune.discovery.watch import copied, leaves, noised, watch
from tokenprune.engine.oracle import tensors_of
from tokenprune.errors import UnknownModelError
from tokenprune.modulemap import BlockSite, ExitSite, ModuleMap, latent_grid
from tokenprune.ops.grid import num_tokens
from tokenprune.targets import TIMES


@dataclass(frozen=True)
class Discovery:
    """What was found of a model.

    Attributes:
        map: its map, checked.
        notes: what could not be known, and what was taken for it.
    """

    map: ModuleMap
    notes: tuple[str, ...]


def discover(model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Discovery:
    """Watch a model at some calls, write its map, and check that a pruned call gives what a full one does.

    The model runs about ten times on copies of the arguments, some of them with noise for latents. It is left as it
    was, the state of the random number generators too.

    Args:
        model: the transformer, with its weights: zeros show nothing.
        args: positional arguments of a usual call.
        kwargs: its named arguments.

    Raises:
        UnknownModelError: a part is missing, or the map does not stand the check; the message says what was found.
    """
    search = _Search(model, args, dict(kwargs or {}))
    devices = [tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"]
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(sorted({device.index or 0 for device in devices})),
            _eagerly(model),
        ):
            return search.run()
    except Undiscovered as error:
        found = "; ".join(search.found) or "nothing yet"
        found += " (in training mode; model.eval() comes first)" if model.training else ""
        raise UnknownModelError(
            f"{type(model).__name__}: no adapter describes this model, and it could not be discovered. Missing: "
            f"{error}. Found: {found}. Pass an adapter, apply(..., adapter=function): see docs/write-an-adapter.md and "
            f"docs/discovery.md"
        ) from error


def _eagerly(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Compiled modules run eagerly, so that hooks see what is inside them; without any, there is nothing to do."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


class _Search:
    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        signature = inspect.signature(model.forward)
        self.model = model
        self.inputs = arguments.by_name(signature.parameters, signature.bind(*args, **kwargs).arguments)
        self.found: list[str] = []
        self.notes: list[str] = []

    def run(self) -> Discovery:
        base = watch(self.model, self.inputs, mixing=False)
        latents = self._latents(base.output)
        time = arguments.find_time(self.inputs, latents)
        if time is None:
            raise Undiscovered(
                f"the timestep: none of the arguments {', '.join(self.inputs)} is called "
                f"{', '.join(TIMES[:4])} or the like, or is the only number for each image"
            )
        self.found += [f"latents {latents!r} {list(self.inputs[latents].shape)}", f"timestep {time!r}"]
        others = watch(self.model, {**self.inputs, latents: noised(self.inputs[latents])}, mixing=False)
        moved = parts.pairs_of(base.events, others.events)
        sites, sizes = parts.find_attentions(moved, len(self.inputs[latents]))
        lengths = ", ".join(map(str, sorted(sizes.joint)))
        self.found.append(
            f"{len(sites)} attention modules with {sizes.tokens} image tokens"
            + (f" (in sequences of {lengths})" if lengths else "")
        )
        blocks = parts.find_blocks(self.model, moved, sites, sizes)
        self.found.append(f"{len(blocks)} blocks from {blocks[0].path} to {blocks[-1].path}")
        nudge = _Nudge(blocks[0], sizes)
        nudged = parts.pairs_of(base.events, watch(self.model, self.inputs, mixing=False, intervene=nudge).events)
        exit_site = parts.find_exit(nudged, moved, blocks, sizes)
        self.found.append(f"exit {exit_site.path}")
        grid, references = self._grid(latents, base.events, blocks[0], sizes)
        given = [argument for site in blocks for argument in site.tokens]
        self.notes.append(
            f"the noise is taken to fall as {time!r} falls; if the second call's rises, that is turned round"
        )
        draft = ModuleMap(
            blocks=_plain_blocks(blocks),
            attentions=sites,
            exit=exit_site.path if exit_site == ExitSite(exit_site.path) else exit_site,
            grid=grid,
            hidden=blocks[0].tokens[0].name,
            latents=latents,
            time=time,
            text=None,
            references=references,
            shared=any(argument.batch is None for argument in given),
        )
        behind, through = self._token_inputs(base.events, latents, blocks[0], sizes)
        draft = replace(draft, token_inputs=behind)
        constant = sorted({argument.name for pair in moved for argument in _constant(pair, blocks, sizes)})
        doubts = [verify.without(name) for name in constant]
        doubts += [verify.with_inputs(*through)] if through else []
        doubts += [verify.expanded, verify.with_scale]
        plain = self.model(**copied(self.inputs))
        checked = self._checked(draft, doubts, plain)
        text, constants = find_constants(self.model, self.inputs, checked, moved)
        if constants:
            with_text = replace(checked, text=text, constants=constants)
            checked = checked if verify.fault_of(self.model, with_text, self.inputs, plain) else with_text
        channels = find_noise_channels(self.model, self.inputs, checked)
        if channels is not None:
            checked = replace(checked, noise_channels=channels[0], output_channels=channels[1])
        checked = replace(checked, least_tokens=verify.least_tokens(self.model, checked, self.inputs, plain))
        return Discovery(checked, tuple(self.notes))

    def _latents(self, output: Any) -> str:
        if not tensors_of(output):
            raise Undiscovered(f"an output with tensors, got {type(output).__name__}")
        candidates = arguments.candidates_for_latents(self.inputs, output)
        if not candidates:
            shapes = {name: list(v.shape) for name, v in self.inputs.items() if isinstance(v, Tensor)}
            raise Undiscovered(
                f"the latents: none of the arguments {shapes} is a tensor of the output's shape "
                f"{list(tensors_of(output)[0].shape)}, number of channels aside"
            )
        return candidates[0]

    def _checked(self, draft: ModuleMap, doubts: list[Callable[[ModuleMap], ModuleMap]], plain: Any) -> ModuleMap:
        faults = []
        for variant in verify.variants(draft, doubts):
            fault = verify.fault_of(self.model, variant, self.inputs, plain)
            if fault is None:
                return variant
            faults.append(fault)
        raise Undiscovered(f"a map that stands the check: {faults[0]}")

    def _grid(self, latents: str, base: Any, entry: BlockSite, sizes: Sizes) -> tuple[Any, Any]:
        """Readers of the token grid and of the number of reference tokens."""
        value = self.inputs[latents]
        hidden = entry.tokens[0]
        tried: dict[tuple[int, ...], set[int]] = {}
        for axes, grid in arguments.grids(value.shape, sizes.tokens):
            if axes not in tried:
                corners = {**self.inputs, latents: arguments.with_corners(value, axes)}
                pairs = parts.pairs_of(base, watch(self.model, corners, mixing=False).events)
                rows = next(
                    changed[hidden.dim]
                    for pair in pairs
                    if pair[0].kind == "call" and pair[0].path == entry.path
                    for place, (_, changed) in parts.changes(pair).items()
                    if place[0] == hidden.name
                )
                first = max(sizes.joint) - sizes.tokens if hidden.layout == "text-image" else 0
                tried[axes] = {row - first for row in rows}
            if tried[axes] == arguments.corner_rows(grid):
                return self._reader(latents, axes, grid)
        self.notes.append(f"no grid of {sizes.tokens} tokens fits {latents!r}; policies see one row of tokens")
        return _OneRow(latents, tuple(value.shape[1:]), sizes.tokens), None

    def _reader(self, latents: str, axes: tuple[int, ...], grid: tuple[int, ...]) -> tuple[Any, Any]:
        shape = self.inputs[latents].shape
        patch = tuple(shape[axis] // extent for axis, extent in zip(axes, grid, strict=True))
        if len(axes) > 1:
            if axes != tuple(range(len(shape) - len(axes), len(shape))):
                return arguments.AxesGrid(latents, axes, patch), None
            return latent_grid(latents, patch[0] if len(set(patch)) == 1 and len(patch) == 2 else patch), None
        positions = arguments.positions_of(self.inputs, latents) if axes == (1,) and patch == (1,) else None
        if positions is not None:
            return positions, arguments.ReferencesAfter(positions)
        self.notes.append(f"{latents!r} holds tokens without a shape; policies see one row of them")
        return arguments.AxesGrid(latents, axes, patch), None

    def _token_inputs(
        self, base: Any, latents: str, entry: BlockSite, sizes: Sizes
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Further arguments of the model with N rows: those used behind the entry, and those that reach the entry."""
        behind: list[str] = []
        through: list[str] = []
        for name, value in self.inputs.items():
            found = [leaf for _, leaf in leaves(value)]
            rows = [leaf for leaf in found if leaf.ndim > 1 and leaf.shape[1] == sizes.tokens]
            if name == latents or not rows or len(rows) < len(found):
                continue
            other = watch(self.model, {**self.inputs, name: noised(value)}, mixing=False)
            reaching = (
                any(any(changed) for _, changed in parts.changes(pair).values())
                for pair in parts.pairs_of(base, other.events)
                if pair[0].kind == "call" and pair[0].path == entry.path
            )
            (through if any(reaching) else behind).append(name)
        return tuple(behind), tuple(through)


class _Nudge:
    """Adds noise to one image token at the first block."""

    def __init__(self, entry: BlockSite, sizes: Sizes) -> None:
        self._path, self._argument = entry.path, entry.tokens[0]
        first = max(sizes.joint) - sizes.tokens if self._argument.layout == "text-image" else 0
        self._row = first + sizes.tokens // 2

    def __call__(self, path: str, bound: inspect.BoundArguments) -> None:
        if path != self._path:
            return
        hidden = bound.arguments[self._argument.name]
        if not isinstance(hidden, Tensor):
            raise Undiscovered(f"a tensor of tokens for {path}, got {type(hidden).__name__}")
        changed = hidden.clone()
        row = changed.select(self._argument.dim, self._row)
        row.copy_(row * -1.5 + noised(row) + 0.1)
        bound.arguments[self._argument.name] = changed


@dataclass(frozen=True)
class _OneRow:
    """A single row of as many tokens as latents of one shape have; of other sizes in proportion."""

    argument: str
    shape: tuple[int, ...]
    tokens: int

    def __call__(self, given: Mapping[str, Any]) -> tuple[int, int]:
        return 1, self.tokens * num_tokens(tuple(given[self.argument].shape[1:])) // num_tokens(self.shape)


def _plain_blocks(blocks: tuple[BlockSite, ...]) -> tuple[str | BlockSite, ...]:
    """Paths alone where all blocks gather one argument [B, N, C] of the same name."""
    hidden = blocks[0].tokens[:1]
    plain = all(site.tokens == hidden for site in blocks) and hidden[0] == replace(
        hidden[0], layout="image", dim=1, batch=0
    )
    return tuple(site.path for site in blocks) if plain else blocks


def _constant(pair: Pair, blocks: tuple[BlockSite, ...], sizes: Sizes) -> list[Any]:
    """The arguments of a block that have rows for tokens, and do not change with the latents."""
    site = next((site for site in blocks if site.path == pair[0].path and pair[0].kind == "call"), None)
    if site is None:
        return []
    moving = {place[0] for place, (_, changed) in parts.changes(pair).items() if any(changed)}
    return [argument for argument in site.tokens if argument.name not in moving]
