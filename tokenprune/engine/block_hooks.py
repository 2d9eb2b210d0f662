"""The hooks of blocks: at a pruned step, arguments with a row for each token are reduced to the computed rows."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from tokenprune.engine.rows import Rows, gather_first
from tokenprune.modulemap import BlockSite, TokenArgument

ATTRIBUTE = "_tokenprune_block"


class BlockState:
    """What the hook of one block works with; the module holds it under `ATTRIBUTE`.

    Attributes:
        arguments: the block's arguments with a row for each token, where they are among positional ones, and how their
            rows may lie, the first that fits.
        counts: name and place of arguments that count tokens, and whether they count those of the picture, computed
            at pruned calls; else they count leading reference tokens, which are not.
        rows: at a pruned call, which rows to keep; None at a full one.
        own: those of arguments that came to this rank divided; the same where there is one rank.
        divided: names of the arguments that the block divides itself, behind this hook.
        ran: whether the block ran since the coming call was prepared.
    """

    def __init__(self, site: BlockSite, block: nn.Module) -> None:
        names = list(inspect.signature(block.forward).parameters)
        ways: dict[tuple[str, int | None], tuple[TokenArgument, ...]] = {}
        for argument in site.tokens:
            part = (argument.name, argument.item)
            ways[part] = (*ways.get(part, ()), argument)
        self.arguments = tuple((name, names.index(name), each) for (name, _), each in ways.items())
        counting = ((site.leading, False), (site.counting, True))
        self.counts = tuple((name, names.index(name), picture) for name, picture in counting if name is not None)
        self.rows: Rows | None = None
        self.own: Rows | None = None
        self.divided: frozenset[str] = frozenset()
        self.ran = False


def before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a block: the entry gathers, later blocks find the hidden states gathered."""
    state: BlockState = getattr(block, ATTRIBUTE)
    state.ran = True
    if state.rows is None or state.own is None:
        return None
    for name, place, ways in state.arguments:
        rows = state.rows if name in state.divided else state.own
        if name in kwargs:
            kwargs = {**kwargs, name: gather_first(rows, ways, kwargs[name])}
        elif place < len(args):
            args = (*args[:place], gather_first(rows, ways, args[place]), *args[place + 1 :])
    for name, place, picture in state.counts:
        count = state.rows.image.count if picture else 0
        args, kwargs = (
            ((*args[:place], count, *args[place + 1 :]), kwargs)
            if place < len(args)
            else (args, {**kwargs, name: count})
        )
    return args, kwargs
