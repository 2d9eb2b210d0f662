"""Checking a map on the spot, and what to try where one call does not settle it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tokenprune.discovery.watch import Inputs, copied
from tokenprune.engine.oracle import difference, play, tensors_of
from tokenprune.errors import TokenPruneError
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.grid import num_tokens

Change = Callable[[ModuleMap], ModuleMap]
"""Another reading of what was seen."""

FRACTION, FEW = 0.4, 2
MOST_TRIALS = 16
SEED = 0


def variants(found: ModuleMap, doubts: Sequence[Change]) -> Iterator[ModuleMap]:
    """The map, then the map with any one of the changes, any two, and so on, up to `MOST_TRIALS` different ones."""
    tried: list[ModuleMap] = []
    for count in range(len(doubts) + 1):
        for chosen in itertools.combinations(doubts, count):
            changed = found
            for change in chosen:
                changed = change(changed)
            if changed not in tried and len(tried) < MOST_TRIALS:
                tried.append(changed)
                yield changed


def fault_of(model: nn.Module, module_map: ModuleMap, inputs: Inputs, plain: Any) -> str | None:
    """What is wrong with a map; None if nothing is.

    Pruned calls of the same input must give the plain model's output up to rounding, and, so that this means
    anything, must not if the keys and values they take from their caches are others.

    Args:
        model: the model.
        module_map: its map.
        inputs: arguments of a call, by name.
        plain: the plain model's output for them.
    """
    tolerance = math.sqrt(torch.finfo(tensors_of(plain)[0].dtype).eps)
    tokens, images = num_tokens(module_map.grid(inputs)), len(inputs[module_map.latents])
    some = min(max(1, round(FRACTION * tokens)), tokens - 1)
    if tokens < 2:
        return f"a picture of {tokens} token has none to prune; call the model with a larger one"

    def played(counts: Sequence[int], corrupted: Sequence[str] = ()) -> list[Any]:
        steps = [copied(inputs) for _ in counts]
        return list(play(model, module_map, steps, counts, SEED, range(images), corrupted))

    try:
        module_map.check(model)
        counts = [tokens, some, min(FEW, some)]
        for output, count in zip(played(counts), counts, strict=True):
            apart = difference(output, plain)
            if not apart <= tolerance:
                return (
                    f"with {count} of {tokens} tokens of the same input the output is off by {apart:.2g} of its largest"
                )
        corrupted = played([tokens, some], [site.path for site in module_map.attentions])[1]
        if difference(corrupted, plain) <= tolerance:
            return (
                "keys and values do not change the output (an untrained model whose gates are zero?), so nothing shows"
            )
    except (TokenPruneError, RuntimeError, ValueError, IndexError, TypeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def least_tokens(model: nn.Module, module_map: ModuleMap, inputs: Inputs, plain: Any) -> int:
    """How many tokens the model can compute at least: one, or as few as its map was checked with."""
    tokens, images = num_tokens(module_map.grid(inputs)), len(inputs[module_map.latents])
    try:
        steps = [copied(inputs), copied(inputs)]
        _, output = play(model, module_map, steps, [tokens, 1], SEED, range(images))
    except (TokenPruneError, RuntimeError, ValueError, IndexError, TypeError):
        return FEW
    return 1 if difference(output, plain) <= math.sqrt(torch.finfo(tensors_of(plain)[0].dtype).eps) else FEW


def without(name: str) -> Change:
    """Blocks do not gather an argument."""

    def change(found: ModuleMap) -> ModuleMap:
        sites = [replace(s, tokens=tuple(t for t in s.tokens if t.name != name)) for s in found.block_sites]
        return replace(found, blocks=tuple(sites))

    return change


def with_inputs(*names: str) -> Change:
    """Arguments of the model are gathered before it sees them."""
    return lambda found: replace(found, token_inputs=(*found.token_inputs, *names))


def expanded(found: ModuleMap) -> ModuleMap:
    """All rows are there again behind the last block."""
    tokens = found.block_sites[-1].tokens
    layout = tokens[0].layout if tokens else "image"
    return replace(found, exit=replace(found.exit_site, expand=found.block_sites[-1].path, expand_layout=layout))


def with_scale(found: ModuleMap) -> ModuleMap:
    """Attention's scale depends on the number of tokens."""
    return replace(found, attentions=tuple(replace(site, keeps_scale=True) for site in found.attentions))
