"""Generations with keys and values in host memory, beside the same with theirs on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Handle, Plan, Taylor
from tokenprune.engine.copy_streams import Copies

POLICY = CATPolicy(0.3, 3, num_clusters=5)
PLANS = {"held": Plan(POLICY), "forecast": Plan(POLICY, reuse=Taylor(keys=True))}
Generate = Callable[..., Tensor]


class Late(Copies):
    """A stream that copies as late as it may: when something waits for a copy."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: list[Callable[[], Any]] = []
        self._done = 0

    def clear(self, memory: Iterable[Tensor]) -> None:
        self._queue += [tensor.zero_ for tensor in memory]

    def mark(self) -> Any:
        return self._done + len(self._queue)

    def hold_computation(self, mark: Any) -> None:
        while mark is not None and self._done < mark:
            self._queue.pop(0)()
            self._done += 1

    def finish(self) -> None:
        self.hold_computation(self.mark())

    def _copy(self, to: Tensor, source: Tensor) -> None:
        self._queue.append(lambda: to.copy_(source))


def both(
    model: nn.Module, draw: Callable[[Handle], list[Tensor]], plan: Plan, **settings: Any
) -> tuple[list[Tensor], list[Tensor], Handle]:
    """What a handle draws, what one with keys and values in host memory draws, and that one's handle."""
    with tokenprune.apply(model, plan, **settings) as handle:
        expected = draw(handle)
    with tokenprune.apply(model, plan, cache_device="cpu", **settings) as handle:
        return expected, draw(handle), handle


def same(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) > 0 and all(map(torch.equal, expected, found))
