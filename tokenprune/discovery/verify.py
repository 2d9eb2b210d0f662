"""Checking a map on the spot, and what to try where one call does not settle it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tokenprune.discovery.watch import Inputs, copied
from tokenprune.engine.oracle import difference, play, tensors_of
from tokenprune.errors import one_line
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


@dataclass(frozen=True)
class Example:
    """A call to check maps with.

    Attributes:
        inputs: its arguments, by name.
        plain: what the plain model gives for them.
        when: at which timestep, for messages.
    """

    inputs: Inputs
    plain: Any
    when: str


class Fault(Exception):  # noqa: N818
    """What is wrong with a map.

    Attributes:
        tokens: how many the step computed that showed it; None if it was no step.
        elsewhere: whether the map stood the check at one noise level, and not at the other.
    """

    def __init__(self, message: str, tokens: int | None = None, elsewhere: bool = False) -> None:
        super().__init__(message)
        self.tokens, self.elsewhere = tokens, elsewhere


def checked(model: nn.Module, module_map: ModuleMap, examples: Sequence[Example]) -> ModuleMap:
    """The map, with the fewest tokens that the model can compute.

    In one generation, pruned steps of the same input as the last full one must give the plain model's output up to
    rounding, at each noise level; and, so that this means anything, must not if the keys and values
    they take from their caches are others.

    Args:
        model: the model.
        module_map: its map.
        examples: calls at different noise levels.

    Raises:
        Fault: it does not stand the check.
    """
    try:
        _check(model, module_map, examples)
    except Fault as fault:
        if fault.tokens != 1:
            raise
        few = replace(module_map, least_tokens=FEW)
        _check(model, few, examples)
        return few
    return module_map


def _check(model: nn.Module, module_map: ModuleMap, examples: Sequence[Example]) -> None:
    near, last = examples[0], examples[-1]
    tolerance = math.sqrt(torch.finfo(tensors_of(near.plain)[0].dtype).eps)
    try:
        module_map.check(model)
        tokens, images = num_tokens(module_map.grid(near.inputs)), len(near.inputs[module_map.latents])
    except Exception as error:
        raise Fault(f"{type(error).__name__}: {one_line(error)}") from error
    if tokens <= module_map.least_tokens:
        raise Fault(f"a picture of {tokens} token has none to prune; call the model with a larger one")
    some = min(max(module_map.least_tokens, round(FRACTION * tokens)), tokens - 1)
    few = module_map.least_tokens
    steps = [(near, tokens), (near, some)] if len(examples) > 1 else [(near, tokens), (near, some), (near, few)]
    for far in examples[1:]:
        steps += [(far, tokens), (far, few)]
    steps.append((last, some))
    calls, counts = [copied(example.inputs) for example, _ in steps], [count for _, count in steps]
    paths, spoiled = [site.path for site in module_map.attentions], len(steps) - 1
    with closing(play(model, module_map, calls, counts, SEED, range(images), paths, spoiled)) as outputs:
        for number, (example, count) in enumerate(steps):
            before = (
                "" if example is near else f" (though not {near.when}: does it do something else at other timesteps?)"
            )
            where = f"{example.when}, with {count} of {tokens} tokens"
            try:
                apart = difference(next(outputs), example.plain)
            except Exception as error:  # the engine's, or whatever the model's own code raises with fewer tokens
                raise Fault(
                    f"{where}: {type(error).__name__}: {one_line(error)}{before}", count, bool(before)
                ) from error
            if number == spoiled and apart <= tolerance:
                raise Fault(
                    "keys and values do not change the output (an untrained model whose gates are zero?), so nothing "
                    "shows"
                )
            if number != spoiled and not apart <= tolerance:
                random = ": does the model draw random numbers, or keep something from call to call?"
                raise Fault(
                    f"{where} of the same input the output is off by {apart:.2g} of its largest"
                    f"{random if count == tokens else before}",
                    count,
                    bool(before),
                )


def without(name: str) -> Change:
    """Blocks do not gather an argument."""

    def change(found: ModuleMap) -> ModuleMap:
        sites = [replace(s, tokens=tuple(t for t in s.tokens if t.name != name)) for s in found.block_sites]
        return replace(found, blocks=tuple(sites))

    return change


def with_inputs(*names: str) -> Change:
    """Arguments of the model are gathered before it sees them."""
    return lambda found: replace(found, token_inputs=(*found.token_inputs, *names))


def without_constants(found: ModuleMap) -> ModuleMap:
    """No layer sees the text alone."""
    return replace(found, text=None, constants=())


def expanded(found: ModuleMap) -> ModuleMap:
    """All rows are there again behind the last block."""
    last = found.block_sites[-1]
    layouts = [argument.layout for argument in last.tokens if argument.layout != "text"]
    layout = layouts[0] if layouts else "image"
    return replace(found, exit=replace(found.exit_site, expand=last.path, expand_layout=layout))


def with_scale(found: ModuleMap) -> ModuleMap:
    """Attention's scale depends on the number of tokens."""
    return replace(found, attentions=tuple(replace(site, keeps_scale=True) for site in found.attentions))
