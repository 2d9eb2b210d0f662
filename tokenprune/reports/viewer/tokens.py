"""What became of each token, as arrays that a page can hold."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tokenprune.ops.grid import TokenGrid
from tokenprune.reports.report import StepReport

OLDEST = 255
"""Ages are shown up to this one; older tokens look as old."""


class TracedStep(Protocol):
    """What is shown of a step; `tokenprune.TraceStep` is one."""

    @property
    def report(self) -> StepReport:
        """Its timestep, tokens and seconds."""

    @property
    def staleness(self) -> Tensor:
        """How old each token's prediction is [B, N]: 0 where the step computed it."""

    @property
    def labels(self) -> dict[str, Tensor]:
        """Cluster labels [B, N] by name."""


@runtime_checkable
class Traced(Protocol):
    """What a page is made of; `tokenprune.Trace` is one."""

    @property
    def steps(self) -> Sequence[TracedStep]:
        """Every step, in order."""

    @property
    def grid(self) -> TokenGrid:
        """Extents of the token grid: (h, w) or (t, h, w); (1, N) where there is none."""


@dataclass(frozen=True)
class Layout:
    """Where a page draws the tokens: `frames` maps of `height` x `width` cells, of which the last may be empty.

    Attributes:
        of_picture: whether the cells lie where the tokens lie in the picture.
    """

    frames: int
    height: int
    width: int
    of_picture: bool

    @classmethod
    def of(cls, grid: TokenGrid) -> Layout:
        """The layout of a grid; tokens without one, or in a single row, go in rows, in their own order."""
        if len(grid) == 3 or (len(grid) == 2 and grid[0] > 1):
            frames, height, width = (1, *grid)[-3:]
            return cls(frames, height, width, of_picture=True)
        tokens = int(torch.tensor(grid).prod())
        width = max(1, round(tokens**0.5))
        return cls(1, -(-tokens // width), width, of_picture=False)


def images_of(trace: Traced) -> int:
    """B, the images that a trace tells apart."""
    return len(trace.steps[0].staleness)


def ages(trace: Traced) -> str:
    """How old the prediction of each token is at each step [S, B, N], 0 where it was computed, packed as bytes."""
    stacked = torch.stack([step.staleness for step in trace.steps])
    return packed(stacked.clamp(max=OLDEST).to(torch.uint8))


def oldest(trace: Traced) -> int:
    """The largest age of all."""
    return max(int(step.staleness.max()) for step in trace.steps)


def clusters(trace: Traced) -> dict[str, dict[str, Any]]:
    """Of each name of labels the different `maps` [M, B, N], packed in 16 bits each, and which of them each step has.

    Clusters are numbered from 0 in the order of their first token; a step without labels has the map None.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in sorted({key for step in trace.steps for key in step.labels}):
        maps: list[Tensor] = []
        places = [_place(maps, step.labels[key]) if key in step.labels else None for step in trace.steps]
        found[key] = {"maps": packed(torch.stack(maps).to(torch.int16)), "of_step": places}
    return found


def _place(maps: list[Tensor], labels: Tensor) -> int:
    """Where the labels [B, N] are among the maps; they are added where they are new."""
    numbered = torch.stack([_numbered(each) for each in labels])
    for place, known in enumerate(maps):
        if torch.equal(known, numbered):
            return place
    maps.append(numbered)
    return len(maps) - 1


def _numbered(labels: Tensor) -> Tensor:
    """Labels [N] in the order of their first token."""
    _, ranks = labels.unique(return_inverse=True)
    first = torch.full((int(ranks.max()) + 1,), len(labels)).scatter_reduce(0, ranks, torch.arange(len(labels)), "amin")
    return first.argsort().argsort()[ranks]


def packed(values: Tensor) -> str:
    """Numbers in the machine's (little-endian) order, deflated, as base64 text."""
    return base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 9)).decode()


def rows(trace: Traced) -> Iterator[dict[str, Any]]:
    """What is said of each step in words and numbers."""
    for step in trace.steps:
        told = step.report
        yield {
            "time": round(told.time, 4),
            "tokens": told.tokens,
            "of": told.num_tokens,
            "kind": told.kind,
            "seconds": round(told.seconds, 6),
            "selection_seconds": round(told.selection_seconds, 6),
        }
