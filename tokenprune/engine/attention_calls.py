"""Which attention calls a module makes in one call of the model: noted at full calls, followed at pruned ones.

A module makes one as a rule. But a processor may attend with a part of the queries, of the heads or of the batch at a
time, twice with other text keys (negative guidance), to an image prompt, or not at all (perturbed guidance). Calls with
the same keys share what is kept of them; those that see no image keys pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from tokenprune.ops.static_memory import version_of


class CallShape(NamedTuple):
    """Sizes of an attention call.

    Attributes:
        rows: B, of the batch.
        heads: H, of the keys.
        queries: l.
        keys: L.
    """

    rows: int
    heads: int
    queries: int
    keys: int

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> CallShape:
        """Of a call with queries [B, H, l, D] and keys [B, H, L, D]."""
        return cls(key.shape[0], key.shape[1], query.shape[2], key.shape[2])


class SeenCall(NamedTuple):
    """An attention call of a full call of the model.

    Attributes:
        shape: its sizes.
        number: of its keys, among the module's keys that hold image tokens; None: they hold none, and it passes.
        first: which row of the batch its first one is.
        masked: whether its mask has a row for each query.
        copied: whether its keys are a copy of those of the first call with that number.
    """

    shape: CallShape
    number: int | None
    first: int = 0
    masked: bool = False
    copied: bool = False


class Run(NamedTuple):
    """Attention calls in a row that share their keys.

    Attributes:
        shape: sizes of the first; `queries` those of all.
        number: of the keys.
        calls: how many.
        parts: whether each has a part of the queries; a pruned call may then make fewer.
        asking: whether image tokens are among the queries of parts.
        copied: whether any of them has a copy of the keys.
    """

    shape: CallShape
    number: int
    calls: int = 1
    parts: bool = False
    asking: bool = True
    copied: bool = False


@dataclass
class SeenCalls:
    """The attention calls that a module made at the last full call of one guidance branch.

    Attributes:
        calls: in order.
        runs: those that see image keys, in order.
        made: whether there was a full call.
        processor: what computed them, and by which back-end.
        scales: of the products of queries and keys, by number of the keys.
        between: what masks had for two different image tokens [b, h, 1], by number of the keys.
    """

    calls: list[SeenCall] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    made: bool = False
    processor: tuple[object, object] = (None, None)
    scales: dict[int, float | None] = field(default_factory=dict)
    between: dict[int, Tensor] = field(default_factory=dict)

    @property
    def keys(self) -> dict[int, SeenCall]:
        """The first call with each of the keys that hold image tokens."""
        found: dict[int, SeenCall] = {}
        for call in self.calls:
            if call.number is not None:
                found.setdefault(call.number, call)
        return found

    def note(self, calls: list[SeenCall], tokens: int, processor: tuple[object, object]) -> None:
        """Take in the calls of a full call, with N = tokens image tokens."""
        self.calls, self.runs, self.made, self.processor = calls, runs_of(calls, tokens), True, processor

    def passes(self, shape: CallShape, selected: int) -> bool:
        """Whether a pruned call's attention call can see no image keys: fewer than n, or those of one that did not."""
        return shape.keys < selected or any(
            call.number is None and call.shape.keys == shape.keys for call in self.calls
        )


def runs_of(calls: list[SeenCall], tokens: int) -> list[Run]:
    """The calls with image keys, N = tokens of them, in runs of the same keys."""
    runs = []
    lengths = {tokens} | {call.shape.keys for call in calls if call.number is not None}
    for number, group in groupby((call for call in calls if call.number is not None), key=lambda call: call.number):
        run = list(group)
        rows, heads, _, keys = run[0].shape
        shape = CallShape(rows, heads, sum(call.shape.queries for call in run), keys)
        parts = len(run) > 1 and any(call.shape.queries not in lengths for call in run)
        copied = any(call.copied for call in run)
        if number is not None:
            runs.append(Run(shape, number, len(run), parts, shape.queries in lengths, copied))
    return runs


class Walk:
    """Where a pruned call of a module is among the calls that it made at the last full one.

    Args:
        runs: those.
        dropped: how many keys of image tokens are not computed: N - n, or twice that where there are two streams.
    """

    def __init__(self, runs: list[Run], dropped: int) -> None:
        self._runs, self._dropped = runs, dropped
        self._at = self._calls = self._queries = 0

    def step(self, shape: CallShape) -> Run | None:
        """The run that the coming attention call belongs to; None if it fits none."""
        if self._at < len(self._runs) and self._complete:
            self._at += 1
            self._calls = self._queries = 0
        if self._at == len(self._runs):
            return None
        run = self._runs[self._at]
        expected = {run.shape.keys - self._dropped} | ({run.shape.keys} if self._at else set())
        if (shape.rows, shape.heads) != (run.shape.rows, run.shape.heads) or shape.keys not in expected:
            return None
        self._calls += 1
        self._queries += shape.queries
        return run

    @property
    def done(self) -> bool:
        """Whether all calls were made."""
        return self._at + 1 >= len(self._runs) and self._complete

    @property
    def _complete(self) -> bool:
        if not self._runs or self._at == len(self._runs):
            return True
        run = self._runs[self._at]
        if run.parts:
            return self._queries == run.shape.queries - (self._dropped if run.asking else 0)
        return self._calls == run.calls


class Held(NamedTuple):
    """Keys and values that an attention call was given; held, so that no others come to lie where they are.

    Attributes:
        key: [B, H, L, D].
        value: [B, H, L, D].
        versions: how often they had been changed in place.
    """

    key: Tensor
    value: Tensor
    versions: tuple[int, int]

    @classmethod
    def of(cls, key: Tensor, value: Tensor) -> Held:
        """Those of a call; compiled code knows no versions."""
        known = not torch.compiler.is_compiling()
        return cls(key, value, (version_of(key), version_of(value)) if known else (0, 0))

    def holds(self, key: Tensor, value: Tensor) -> bool:
        """Whether another call was given the same; compiled code knows objects only, not memory."""
        if torch.compiler.is_compiling():
            return self.key is key and self.value is value
        same = same_tensor(self.key, key) and same_tensor(self.value, value)
        return same and self.versions == (version_of(key), version_of(value))

    def equals(self, key: Tensor, value: Tensor) -> bool:
        """Whether another call was given a copy; waits for the device. On the meta device all of one shape are."""
        if (self.key.shape, self.value.shape) != (key.shape, value.shape):
            return False
        return key.is_meta or (torch.equal(self.key, key) and torch.equal(self.value, value))


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return one is other or (
        one.untyped_storage()._cdata == other.untyped_storage()._cdata
        and one.storage_offset() == other.storage_offset()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )
