"""Which arguments of a model are the noisy latents and the timestep, and what token grid the latents make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tokenprune.discovery.watch import Inputs
from tokenprune.modulemap import Arguments
from tokenprune.ops.grid import TokenGrid, num_tokens
from tokenprune.targets import TIMES

AXES = {3: ((1,), (2,)), 4: ((2, 3), (1, 2)), 5: ((2, 3, 4), (1, 3, 4), (1, 2, 3))}
"""Which dimensions of latents may be axes of the token grid, by their number of dimensions, the likeliest first."""


@dataclass(frozen=True)
class AxesGrid:
    """Reads the token grid from some of the dimensions of the latents.

    Args:
        argument: name of the latents.
        axes: the dimensions that are axes of the grid; one alone stands for a single row of tokens.
        patch: extent of a patch along each.
    """

    argument: str
    axes: tuple[int, ...]
    patch: tuple[int, ...]

    def __call__(self, arguments: Arguments) -> TokenGrid:
        """The grid of a call; of a single frame it has two dimensions."""
        shape = arguments[self.argument].shape
        found = tuple(shape[axis] // size for axis, size in zip(self.axes, self.patch, strict=True))
        return (1, *found) if len(found) == 1 else found[1:] if found[:-2] == (1,) else found


@dataclass(frozen=True)
class PositionsGrid:
    """Reads the token grid from the positions of tokens [N, columns], with or without a batch.

    Columns that differ between tokens are the axes. Where the tokens do not fill the grid of all columns, those that
    differ from the first token in the first such column are references.

    Args:
        argument: name of the positions; its last N rows are the image's.
        latents: name of the latents [B, N, C].
    """

    argument: str
    latents: str

    def __call__(self, arguments: Arguments) -> TokenGrid:
        """The grid of a call; positions without values (on torch's meta device) give one row of tokens."""
        tokens = arguments[self.latents].shape[1]
        positions = arguments[self.argument]
        positions = (positions[0] if positions.ndim == 3 else positions)[-tokens:]
        while not positions.is_meta:
            extents = (positions.amax(0) - positions.amin(0) + 1).long().tolist()
            axes = [column for column, extent in enumerate(extents) if extent > 1]
            grid = tuple(extents[column] for column in axes)
            if num_tokens(grid) == len(positions) and len(grid) > 1:
                return grid
            if len(axes) < 2:
                break
            positions = positions[positions[:, axes[0]] == positions[0, axes[0]]]
        return (1, tokens)


@dataclass(frozen=True)
class OneRow:
    """A single row of tokens: as many as latents of one shape have, in proportion for latents of other sizes.

    Args:
        argument: name of the latents.
        shape: theirs, without the batch.
        tokens: how many they had.
    """

    argument: str
    shape: tuple[int, ...]
    tokens: int

    def __call__(self, arguments: Arguments) -> TokenGrid:
        """The grid of a call."""
        extent = num_tokens(tuple(arguments[self.argument].shape[1:]))
        return (1, self.tokens * extent // num_tokens(self.shape))


@dataclass(frozen=True)
class ReferencesAfter:
    """Says that the tokens of the latents [B, N, C] beyond the grid's are references."""

    grid: PositionsGrid

    def __call__(self, arguments: Arguments) -> tuple[int, int]:
        """How many lie before and after the grid."""
        return 0, arguments[self.grid.latents].shape[1] - num_tokens(self.grid(arguments))


def candidates_for_latents(inputs: Inputs, output: Any) -> list[str]:
    """Arguments shaped like an output, but perhaps for the number of channels; the likeliest first."""
    shapes = [leaf.shape for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    found: list[tuple[int, int, str]] = []
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.ndim in AXES and value.is_floating_point():
            apart = [
                sum(one != two for one, two in zip(value.shape, shape, strict=True))
                for shape in shapes
                if len(shape) == value.ndim and shape[0] == value.shape[0]
            ]
            if apart and min(apart) <= 1:
                found.append((min(apart), len(found), name))
    return [name for *_, name in sorted(found)]


def find_time(inputs: Inputs, latents: str) -> str | None:
    """The timestep's name: a known one, or else the only number or tensor [B] of floating-point numbers."""
    images = len(inputs[latents])
    for name in TIMES:
        if name in inputs and name != latents and _is_time(inputs[name], images):
            return name
    found = [
        name
        for name, value in inputs.items()
        if name != latents and _is_time(value, images) and (isinstance(value, float) or _is_float(value))
    ]
    return found[0] if len(found) == 1 else None


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_time(value: Any, images: int) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 or (value.ndim in (1, 2) and len(value) == images)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def positions_of(inputs: Inputs, latents: str) -> PositionsGrid | None:
    """A reader of the grid from an argument with the position of each token, if there is one."""
    value = inputs[latents]
    for name, given in inputs.items():
        if isinstance(given, Tensor) and name != latents and given.ndim in (2, 3) and 2 <= given.shape[-1] <= 4:
            reader = PositionsGrid(name, latents)
            if given.shape[-2] >= value.shape[1] and reader(inputs)[0] > 1:
                return reader
    return None


def by_name(parameters: Mapping[str, Any], bound: Mapping[str, Any]) -> dict[str, Any]:
    """Bound arguments by name, those of `**kwargs` among them."""
    found: dict[str, Any] = {}
    for name, value in bound.items():
        found.update(value if parameters[name].kind is parameters[name].VAR_KEYWORD else {name: value})
    return found
