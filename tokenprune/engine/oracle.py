"""What adapters are checked with: generations of one input whose caches hold just what would be computed."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tokenprune.engine.masked_module import MaskedModule
from tokenprune.engine.settings import PruningSettings
from tokenprune.engine.step_tracker import OneGeneration
from tokenprune.engine.timeline import Timeline
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.guidance import Guidance
from tokenprune.ops.selection import Selection
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.reuse.base import Reuse, ReuseState
from tokenprune.reuse.key_value import FreshKeys, KeyValueBuffer
from tokenprune.schedule import CountSchedule

Inputs = Mapping[str, Any]
"""Arguments of one call of a model, by name."""


def play(
    model: nn.Module,
    module_map: ModuleMap,
    steps: Sequence[Inputs],
    counts: Sequence[int],
    seed: int,
    images: Sequence[int],
    corrupted: Collection[str | None] = (),
    corrupted_from: int = 1,
    held: Collection[int] = (),
) -> Generator[Any, None, None]:
    """The outputs of a generation that computes `counts` tokens of each image at its steps, one after the other.

    What is cached of the predictions of tokens about to be computed is overwritten with NaN. So, with the same input
    at each step, a pruned step gives the full step's output if the map is right.

    Args:
        model: the model; it gets hooks for as long as the generation lasts.
        module_map: says where.
        steps: the arguments of each call.
        counts: how many tokens of each image each computes.
        seed: of the selections.
        images: numbers of the images of the batch; each has random numbers of its own.
        corrupted: attention modules, by path, whose pruned steps get other keys and values than the kept ones.
        corrupted_from: the first step at which they do.
        held: steps that compute no text tokens.
    """
    policy = _Drawn(seed, images)
    settings = PruningSettings(policy, CountSchedule(counts, held), _Poisoned(), guidance="none")
    masked = MaskedModule(model, module_map, settings, Timeline(OneGeneration))
    masked.install()
    try:
        for step, inputs in enumerate(steps):
            yield model(**inputs)
            spoiled = corrupted if step + 1 >= corrupted_from else ()
            for branch in masked.generation.branches.values():
                for key, buffer in branch.buffers.items():
                    buffer.corrupted = key.path in spoiled  # type: ignore[attr-defined]
    finally:
        masked.remove()


def far_times(value: Any) -> list[Any]:
    """Timesteps far from the given one: at the lower end of its scale, and at the upper end unless it is near that.

    Timesteps count to about 1000 or to 1; whole numbers, and those above 1, are taken for the former. Which end has no
    noise does not matter.

    Args:
        value: a number or tensor.
    """
    highest = float(value.detach().max()) if isinstance(value, Tensor) else value
    whole = not value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, int)
    scale = 1000 if whole or highest > 1 else 1
    low = value // 50 if whole else value / 50
    high = 98 * scale // 100 if whole else 0.98 * scale
    found = [low] if highest > 0 else []
    if highest < 0.5 * scale:
        found.append(torch.full_like(value, high) if isinstance(value, Tensor) else high)
    return found


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors of an output."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def difference(output: Any, expected: Any) -> float:
    """The largest difference between two outputs, relative to the largest expected value; NaN counts as infinite."""
    worst = 0.0
    for one, other in zip(tensors_of(output), tensors_of(expected), strict=True):
        if one.shape != other.shape:
            return math.inf
        apart = float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
        worst = max(worst, math.inf if math.isnan(apart) else apart)
    return worst


class _Drawn(SelectionPolicy):
    """Draws tokens, for every image from a generator of its own."""

    def __init__(self, seed: int, images: Sequence[int]) -> None:
        self._seed, self._images = seed, images

    def select(self, seen: Observation, memory: Memory) -> Selection:
        scores = []
        for image in list(self._images)[: len(seen.prediction)]:
            generator = torch.Generator().manual_seed(self._seed + 100 * seen.step + image)
            scores.append(torch.rand(seen.prediction.shape[1], generator=generator))
        return Selection.top(torch.stack(scores).to(seen.prediction.device), seen.count)


class _Poisoned(Reuse):
    """Holds predictions, but those about to be computed become NaN; caches of keys and values can be corrupted."""

    def start(self, guidance: Guidance = "none") -> ReuseState:
        return _PoisonedState()

    def start_keys(self, guidance: Guidance = "none", depth: float = 0.0) -> KeyValueBuffer:
        return _CorruptibleBuffer()


class _PoisonedState(ReuseState):
    def __init__(self) -> None:
        self._last = torch.empty(0)

    def record(self, prediction: Tensor, time: float) -> None:
        self._last = prediction.clone()

    def complete(self, fresh: Tensor, selection: Selection, time: float) -> Tensor:
        poisoned = self._last.masked_fill(selection.mask().unsqueeze(-1), math.nan)
        self._last = selection.scatter(fresh, poisoned)
        return self._last.clone()

    def forecast(self, time: float) -> Tensor:
        return self._last.clone()

    @property
    def nbytes(self) -> int:
        return self._last.nbytes


class _CorruptibleBuffer(KeyValueBuffer):
    """Gives other keys and values than the kept ones while `corrupted`."""

    corrupted = False

    def update(self, fresh: FreshKeys, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.corrupted:
            for kept in self.kept:
                kept.copy_(3 * kept.roll(1, dims=-1) + 1)
        return super().update(fresh, key, value)
