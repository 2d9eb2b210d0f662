"""The hooks of blocks: at a pruned step, arguments with a row for each token are reduced to the computed rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.in_place import Shelf
from tokenprune.modulemap import BlockSite, ExitSite, Layout, TokenArgument
from tokenprune.selection import Selection

ATTRIBUTE = "_tokenprune_block"
EXPANDED = "_tokenprune_expanded"


class Rows:
    """Which rows of every kind of sequence a pruned call computes.

    Args:
        images: the selected tokens of every image [B, n] out of all its tokens, reference tokens included.
        layouts: the kinds of sequences that the model has.
        text: T, how many text tokens go with the image tokens in a joint sequence.
        starts: where each image begins in its joint sequence [B], if that differs.
        frames: how many sequences of the batch belong to each image.
        shelf: where the indices are kept from step to step.

    Attributes:
        images: as above.
        image: the same for every sequence of image tokens, frames of an image one by one.
        by_layout: the computed rows of sequences of each layout.
        shelf: as above.
    """

    def __init__(
        self,
        images: Selection,
        layouts: Iterable[Layout],
        text: int = 0,
        starts: Tensor | None = None,
        frames: int = 1,
        shelf: Shelf | None = None,
    ) -> None:
        self.shelf = Shelf() if shelf is None else shelf
        self._made: dict[Hashable, Selection] = {}
        self.images = self.image = self._once("images", lambda: images)
        if frames > 1:
            index = images.index
            self.image = self._once("frames", lambda: Selection(index.repeat_interleave(frames, 0), images.num_tokens))
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
        return self._once((device, layout), lambda: selection.to(device))

    def sequence(self, layout: Layout, length: int, image: int | None = None) -> Selection:
        """The computed rows of sequences of any length: the selected image tokens and all text tokens.

        Args:
            layout: of the sequences.
            length: N and how many text tokens there are.
            image: takes the sequence of one image of the batch only.
        """
        if image is None and length == self.image.num_tokens:
            return self.image
        chosen = self.image if image is None else Selection(self.image.index[image : image + 1], self.image.num_tokens)
        first: int | Tensor = 0
        if layout == "text-image":
            first = length - chosen.num_tokens if self._starts is None else self._starts
        return self._once((layout, length, image), lambda: chosen.within(length, first))

    def _once(self, name: Hashable, make: Callable[[], Selection]) -> Selection:
        """What goes by this name, made when it is first asked for and put on the shelf."""
        if name not in self._made:
            made = make()
            self._made[name] = Selection(self.shelf.put(name, made.index), made.num_tokens)
        return self._made[name]


def gather(rows: Rows, argument: TokenArgument, value: Any) -> Any:
    """An argument with its computed rows only; what is of another length stays as it is."""
    if isinstance(value, dict):
        return {key: gather(rows, argument, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        whole = replace(argument, item=None)
        chosen = [argument.item in (None, place) for place in range(len(value))]
        return type(value)(gather(rows, whole, item) if c else item for item, c in zip(value, chosen, strict=True))
    if not isinstance(value, Tensor) or value.ndim <= argument.dim or value.ndim < argument.ndim:
        return value
    folded = argument.batch == argument.dim
    selection = rows.on(value.device, None if folded else argument.layout)
    length = selection.num_tokens * (selection.batch_size if folded else 1)
    return selection.take(value, argument.dim, argument.batch) if value.shape[argument.dim] == length else value


class BlockState:
    """What the hook of one block works with; the module holds it under `ATTRIBUTE`.

    Attributes:
        arguments: the block's arguments with a row for each token, and where they are among positional ones.
        leading: name and place of the argument that counts leading reference tokens.
        rows: at a pruned call, which rows to keep; None at a full one.
    """

    def __init__(self, site: BlockSite, block: nn.Module) -> None:
        names = list(inspect.signature(block.forward).parameters)
        self.arguments = tuple((argument, names.index(argument.name)) for argument in site.tokens)
        self.leading = (site.leading, names.index(site.leading)) if site.leading is not None else None
        self.rows: Rows | None = None


def before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a block: the entry gathers, later blocks find the hidden states gathered."""
    state: BlockState = getattr(block, ATTRIBUTE)
    if state.rows is None:
        return None
    for argument, place in state.arguments:
        if argument.name in kwargs:
            kwargs = {**kwargs, argument.name: gather(state.rows, argument, kwargs[argument.name])}
        elif place < len(args):
            args = (*args[:place], gather(state.rows, argument, args[place]), *args[place + 1 :])
    if state.leading is not None:
        name, place = state.leading
        args, kwargs = (
            ((*args[:place], 0, *args[place + 1 :]), kwargs) if place < len(args) else (args, {**kwargs, name: 0})
        )
    return args, kwargs


class ExpandState:
    """What the hook of the module before an exit that needs all rows works with; held under `EXPANDED`.

    Attributes:
        site: the exit.
        rows: at a pruned call, which rows were computed; None at a full one.
    """

    def __init__(self, site: ExitSite) -> None:
        self.site = site
        self.rows: Rows | None = None


def after_expanded(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: all rows again, those that were not computed 0."""
    state: ExpandState = getattr(module, EXPANDED)
    if state.rows is None:
        return None
    hidden = output[state.site.expand_item] if isinstance(output, tuple) else output
    selection = state.rows.on(hidden.device, state.site.expand_layout)
    whole = selection.scatter(hidden, hidden.new_zeros(len(hidden), selection.num_tokens, *hidden.shape[2:]))
    if not isinstance(output, tuple):
        return whole
    item = state.site.expand_item
    return (*output[:item], whole, *output[item + 1 :])
