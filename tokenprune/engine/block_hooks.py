"""The hooks of blocks: at a pruned step, arguments with a row for each token are reduced to the computed rows."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from tokenprune.engine.rows import Rows, gather
from tokenprune.modulemap import BlockSite

ATTRIBUTE = "_tokenprune_block"


class BlockState:
    """What the hook of one block works with; the module holds it under `ATTRIBUTE`.

    Attributes:
        arguments: the block's arguments with a row for each token, and where they are among positional ones.
        leading: name and place of the argument that counts leading reference tokens.
        rows: at a pruned call, which rows to keep; None at a full one.
        ran: whether the block ran since the coming call was prepared.
    """

    def __init__(self, site: BlockSite, block: nn.Module) -> None:
        names = list(inspect.signature(block.forward).parameters)
        self.arguments = tuple((argument, names.index(argument.name)) for argument in site.tokens)
        self.leading = (site.leading, names.index(site.leading)) if site.leading is not None else None
        self.rows: Rows | None = None
        self.ran = False


def before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a block: the entry gathers, later blocks find the hidden states gathered."""
    state: BlockState = getattr(block, ATTRIBUTE)
    state.ran = True
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
