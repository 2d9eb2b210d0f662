"""What policies that are made of other policies need: an order of preference, and a memory for each part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from tokenprune.ops.ranking import ranks
from tokenprune.policies.base import Memory, Observation, ScorePolicy, SelectionPolicy


def preference(policy: SelectionPolicy, seen: Observation, memory: Memory, count: int) -> Tensor:
    """Place [B, N] of every token in a policy's order of preference, 0 for the token it wants most.

    A `ScorePolicy` has such an order. Of any other policy only a selection is known: it is asked once, for `count`
    tokens, which come before all others; on either side the tokens not computed for longest come first, and among
    equals the first in the grid.
    """
    seen = replace(seen, count=count)
    if isinstance(policy, ScorePolicy) and type(policy).select is ScorePolicy.select:
        return ranks(policy.score(seen, memory))
    wanted = policy.select(seen, memory).mask().int()
    if seen.age is None:
        return ranks(wanted)
    by_age = ranks(seen.age)
    return ranks(wanted * by_age.shape[1] - by_age)


@contextmanager
def namespace(memory: Memory, name: str) -> Iterator[Memory]:
    """The part of a memory whose keys begin with the name and a dot, as a memory of its own."""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): tensor for key, tensor in memory.items() if key.startswith(prefix)}
    known = set(own)
    yield own
    for key in known - set(own):
        del memory[prefix + key]
    memory.update({prefix + key: tensor for key, tensor in own.items()})
