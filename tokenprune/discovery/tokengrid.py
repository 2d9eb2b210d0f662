"""Which token grid the latents make: a call with other corners shows which tokens they become."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from tokenprune.discovery.arguments import AXES, AxesGrid, OneRow, ReferencesAfter, positions_of
from tokenprune.discovery.parts import Pair, Sizes, changes, pairs_of
from tokenprune.discovery.watch import Event, Inputs, watch
from tokenprune.modulemap import BlockSite, latent_grid
from tokenprune.ops.grid import TokenGrid, num_tokens


class GridSearch:
    """Tries the ways to cut the latents into tokens.

    Args:
        model: the model.
        inputs: arguments of a call, by name.
        latents: name of the latents.
        base: what happened in a call with them, attention left out.
        entry: the first block.
        sizes: lengths of sequences.

    Attributes:
        nudged: two calls of which one had other corners, those that fewest tokens saw; attention left out.
        nudged_tokens: how many did.
        reader: of the token grid.
        references: of the number of reference tokens; None: none.
        note: what could not be known; empty if nothing.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, latents: str, base: list[Event], entry: BlockSite, sizes: Sizes
    ) -> None:
        self._model, self._inputs, self._latents, self._base = model, inputs, latents, base
        self._entry, self._sizes = entry, sizes
        self._tried: dict[tuple[int, ...], tuple[set[int], list[Pair]]] = {}
        value = inputs[latents]
        self.note = f"no grid of {sizes.tokens} tokens fits {latents!r}; policies see one row of tokens"
        self.reader: Any = OneRow(latents, tuple(value.shape[1:]), sizes.tokens)
        self.references: ReferencesAfter | None = None
        for axes, grid in grids(value.shape, sizes.tokens):
            if self._try(axes)[0] == corner_rows(grid):
                self._read(axes, grid)
                break
        self._try(AXES[value.ndim][0])
        rows, self.nudged = min(self._tried.values(), key=lambda each: (not each[0], len(each[0])))
        self.nudged_tokens = len(rows)

    def _try(self, axes: tuple[int, ...]) -> tuple[set[int], list[Pair]]:
        """Which tokens change with the corners along these axes, and the two calls."""
        if axes not in self._tried:
            hidden = self._entry.tokens[0]
            corners = {**self._inputs, self._latents: with_corners(self._inputs[self._latents], axes)}
            pairs = pairs_of(self._base, watch(self._model, corners, mixing=False).events)
            found = (
                changed[hidden.dim]
                for pair in pairs
                if pair[0].kind == "call" and pair[0].path == self._entry.path
                for place, (_, changed) in changes(pair).items()
                if place[0] == hidden.name
            )
            rows = next(found, ())
            first = max(self._sizes.joint) - self._sizes.tokens if hidden.layout == "text-image" else 0
            self._tried[axes] = {row - first for row in rows}, pairs
        return self._tried[axes]

    def _read(self, axes: tuple[int, ...], grid: TokenGrid) -> None:
        """Keep the readers for these axes."""
        shape, latents = self._inputs[self._latents].shape, self._latents
        patch = tuple(shape[axis] // extent for axis, extent in zip(axes, grid, strict=True))
        self.reader, self.note = AxesGrid(latents, axes, patch), ""
        if len(axes) > 1:
            if axes == tuple(range(len(shape) - len(axes), len(shape))):
                square = len(set(patch)) == 1 and len(patch) == 2
                self.reader = latent_grid(latents, patch[0] if square else patch)
            return
        positions = positions_of(self._inputs, latents) if axes == (1,) and patch == (1,) else None
        if positions is None:
            self.note = f"{latents!r} holds tokens without a shape; policies see one row of them"
        else:
            self.reader, self.references = positions, ReferencesAfter(positions)


def grids(shape: Sequence[int], tokens: int) -> Iterator[tuple[tuple[int, ...], TokenGrid]]:
    """All ways to cut latents of a shape into patches so that there are so many tokens: axes, extents of the grid."""
    for axes in AXES[len(shape)]:
        extents = [shape[axis] for axis in axes]
        divisors = ([part for part in range(1, extent + 1) if extent % part == 0] for extent in extents)
        for grid in itertools.product(*divisors):
            if num_tokens(grid) == tokens:
                yield axes, grid


def corner_rows(grid: TokenGrid) -> set[int]:
    """Places of the tokens at the last place of one axis and the first of all others."""
    strides = [num_tokens(grid[axis + 1 :]) for axis in range(len(grid))]
    return {(extent - 1) * stride for extent, stride in zip(grid, strides, strict=True)}


def with_corners(latents: Tensor, axes: Sequence[int]) -> Tensor:
    """Latents with other values at the last place of one axis and the first of all others."""
    changed = latents.clone()
    for own in axes:
        index = tuple((-1 if axis == own else 0) if axis in axes else slice(None) for axis in range(latents.ndim))
        changed[index] = changed[index] * -1.5 + 1.3
    return changed
