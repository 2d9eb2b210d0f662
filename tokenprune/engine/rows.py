"""Which rows of every kind of sequence a pruned call computes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tokenprune.engine.shards import ALONE, Shards
from tokenprune.modulemap import Layout, TokenArgument
from tokenprune.ops.selection import Selection
from tokenprune.ops.static_memory import StaticBuffers

LEAST_TEXT = 1
"""Text tokens that a pruned call computes where it may leave them out: some models cannot do without any."""


class Rows:
    """Which rows of every kind of sequence a pruned call computes.

    Args:
        images: the selected tokens of every image out of all its tokens, reference tokens included.
        layouts: the kinds of sequences that the model has.
        text: T, how many text tokens go with the image tokens in a joint sequence.
        starts: where each image begins in its joint sequence [B], if that differs.
        frames: how many sequences of the batch belong to each image.
        static: where the indices are kept from step to step.
        with_text: whether all text tokens are computed; if not, only the first ones are.
        shards: over which ranks the arguments that rows are taken from are divided.
        copies: how often the batch holds all images, one copy after the other.

    Attributes:
        images: the selected tokens of the whole batch [B, n].
        image: the same for every sequence of image tokens, frames of an image one by one.
        by_layout: the computed rows of sequences of each layout.
        static: as above.
        most_text: how many text tokens are computed, from the first on; None is all.
        shards: as above.
    """

    def __init__(
        self,
        images: Selection,
        layouts: Iterable[Layout],
        text: int = 0,
        starts: Tensor | None = None,
        frames: int = 1,
        static: StaticBuffers | None = None,
        with_text: bool = True,
        shards: Shards = ALONE,
        copies: int = 1,
    ) -> None:
        self.most_text = None if with_text else LEAST_TEXT
        self.shards = shards
        self._joined: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.static = StaticBuffers() if static is None else static
        self._made: dict[Hashable, Selection] = {}
        tokens = images.num_tokens
        self.images = self.image = self._once("images", tokens, lambda: [images.index] * copies, dim=0)
        if frames > 1:
            index = self.images.index
            self.image = self._once("frames", tokens, lambda: [index.repeat_interleave(frames, 0)])
        self._text, self._starts = text, starts
        joint = images.num_tokens + text
        self.by_layout = {
            layout: self.image if layout == "image" else self.sequence(layout, joint) for layout in layouts
        }

    def on(self, device: torch.device, layout: Layout | None) -> Selection:
        """The computed rows of sequences of a layout (None: of images) on a device; moved there once."""
        selection = self.images if layout is None else self.by_layout[layout]
        if selection.index.device == device:
            return selection
        return self._once((device, layout), selection.num_tokens, lambda: [selection.index.to(device)])

    def sequence(
        self, layout: Layout, length: int, part: tuple[int, int] | None = None, whole_text: bool = False
    ) -> Selection:
        """The computed rows of sequences of any length: the selected image tokens and the computed text tokens.

        Args:
            layout: of the sequences.
            length: N and how many text tokens there are.
            part: takes so many sequences of the batch only: the first of them, and how many.
            whole_text: counts all text tokens in, whichever of them are computed.
        """
        if part is None and length == self.image.num_tokens and layout != "image-image":
            return self.image

        most = None if whole_text else self.most_text

        def make() -> list[Tensor]:
            chosen, starts = self.image, self._starts
            if part is not None:
                chosen = Selection(chosen.index[rows_of(*part, chosen.index)], chosen.num_tokens)
                starts = None if starts is None else starts[rows_of(*part, starts)]
            if layout == "image-image":
                return [chosen.index, chosen.index + chosen.num_tokens]
            first: int | Tensor = 0
            if layout == "text-image":
                first = length - chosen.num_tokens if starts is None else starts
            return chosen.parts_within(length, first, most, self._every)

        return self._once((layout, length, part, most), length, make)

    def whole(self, value: Tensor, dim: int) -> Tensor:
        """A tensor of which this rank was given its part along a dimension; joined once, as blocks share arguments."""
        if self.shards.degree == 1:
            return value
        if torch.compiler.is_compiling():
            return self.shards.joined(value, dim)
        if (id(value), dim) not in self._joined:
            self._joined[id(value), dim] = (value, self.shards.joined(value, dim))
        return self._joined[id(value), dim][1]

    def _every(self, first: int, end: int) -> Tensor:
        """The tokens from the first one to before the last [1, ...]."""
        return self.static.numbers(first, 1, end - first, self.image.index.device).T

    def _once(self, name: Hashable, length: int, make: Callable[[], list[Tensor]], dim: int = 1) -> Selection:
        """What goes by this name, made when it is first asked for and kept at its address.

        Args:
            name: its name.
            length: of the sequences.
            make: gives its indices in parts.
            dim: along which the parts are joined.
        """
        if name not in self._made:
            parts = make()
            sizes = list(parts[0].shape)
            sizes[dim] = sum(part.shape[dim] for part in parts)
            index = self.static.write(name, tuple(sizes), torch.cat, parts, dim)
            starts = self.static.numbers(0, length, len(index), index.device)
            flat = self.static.write((name, "flat"), tuple(sizes), torch.add, index, starts)
            self._made[name] = Selection(index, length, flat.flatten())
        return self._made[name]


def rows_of(first: int, count: int, batch: Tensor) -> Tensor:
    """So many rows of a batch [B, ...] from one on [count]; after the last comes the first."""
    return torch.arange(first, first + count, device=batch.device) % len(batch)


def gather(rows: Rows, argument: TokenArgument, value: Any) -> Any:
    """An argument with its computed rows only. What is of another length stays as it is."""
    if isinstance(value, dict):
        return {key: gather(rows, argument, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        whole = replace(argument, item=None)
        chosen = [argument.item in (None, place) for place in range(len(value))]
        return type(value)(gather(rows, whole, item) if c else item for item, c in zip(value, chosen, strict=True))
    if not isinstance(value, Tensor) or value.ndim <= argument.dim or value.ndim < argument.ndim:
        return value
    if argument.layout == "text":
        count = value.shape[argument.dim]
        return value if rows.most_text is None else value.narrow(argument.dim, 0, min(rows.most_text, count))
    folded = argument.batch == argument.dim
    selection = rows.on(value.device, None if folded else argument.layout)
    length = selection.num_tokens * (selection.batch_size if folded else 1)
    if value.shape[argument.dim] * rows.shards.degree != length:
        return value
    return selection.take(rows.whole(value, argument.dim), argument.dim, argument.batch)


def gather_first(rows: Rows, ways: Iterable[TokenArgument], value: Any) -> Any:
    """An argument with its computed rows only, by the first of several ways that its rows may lie which fits it."""
    for argument in ways:
        found = gather(rows, argument, value)
        if any(one is not other for one, other in zip(tree_leaves(found), tree_leaves(value), strict=True)):
            return found
    return value
