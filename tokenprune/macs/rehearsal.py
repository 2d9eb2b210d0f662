"""A generation on torch's meta device: what it computes and keeps, without weights or arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tokenprune.engine.copies import bare_twin
from tokenprune.engine.masked_module import MaskedModule
from tokenprune.engine.on_meta import MetaWins, meta_twin
from tokenprune.engine.settings import PruningSettings
from tokenprune.engine.step_tracker import CallPosition, OneGeneration
from tokenprune.engine.timeline import Timeline
from tokenprune.errors import ConfigurationError
from tokenprune.macs.counting import Computed, Layers, by_layer, counting
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.grid import TokenGrid, num_tokens
from tokenprune.ops.guidance import BranchKey
from tokenprune.plans.plan import Plan
from tokenprune.policies.sequential import SequentialPolicy
from tokenprune.reports.report import Macs
from tokenprune.schedule import CountSchedule, Schedule, rehearsed, tokens_at

FULL_STEPS = 3
"""Full steps of a rehearsal: forecasts take all the memory that they ever do within so many."""


@dataclass(frozen=True)
class CallPattern:
    """How a pipeline calls a model at every step.

    Attributes:
        arguments: of one call by name.
        times: calls of a step, one for each guidance branch.
        halves: whether a call holds both halves of classifier-free guidance.
    """

    arguments: Mapping[str, Any]
    times: int = 1
    halves: bool = False


@dataclass(frozen=True)
class Rehearsal:
    """What one generation computes and keeps.

    Attributes:
        grid: the token grid.
        counts: image tokens computed of each image, at each step.
        texts: whether the text tokens of joint sequences are computed at each step.
        layers: operations of one call, by what it computes.
        calls: calls of each step.
        images: rows of the batch of a call, both guidance halves counted.
        keys: length and bytes of the keys and values of each attention module, for all rows and calls.
        cache_bytes: bytes of all caches on the model's device.
        host_bytes: bytes of keys and values in host memory.
        moved: bytes that a step copies to the device, and from it, by what it computes.
    """

    grid: TokenGrid
    counts: tuple[int, ...]
    texts: tuple[bool, ...]
    layers: Mapping[Computed, Layers]
    calls: int
    images: int
    keys: tuple[tuple[int, int], ...]
    cache_bytes: int
    host_bytes: int = 0
    moved: Mapping[Computed, tuple[int, int]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """N, tokens of the grid."""
        return num_tokens(self.grid)

    @property
    def token_ratio(self) -> float:
        """Share of the plain model's token computations."""
        return sum(self.counts) / (len(self.counts) * self.tokens)

    @property
    def dense(self) -> Macs:
        """Operations of the plain model over all steps."""
        return self.layers[Computed(self.tokens)][""] * (self.calls * len(self.counts))

    @property
    def macs(self) -> Macs:
        """Operations over all steps."""
        every = (self.layers[computed][""] for computed in self.computed if computed.tokens)
        return sum(every, Macs(0, 0)) * self.calls

    @property
    def computed(self) -> tuple[Computed, ...]:
        """What each call of each step computes."""
        return tuple(map(Computed, self.counts, self.texts))

    def key_bytes(self, tokens: int | None = None) -> float:
        """Bytes of all keys and values, or of those of a grid of so many tokens."""
        more = 0 if tokens is None else tokens - self.tokens
        return sum(size * (length + more) / length for length, size in self.keys)


def counts_of(schedule: Schedule, tokens: int, steps: int, least: int = 1) -> tuple[int, ...]:
    """Image tokens computed at each step, where the noise level falls evenly from 1; the first step is full.

    Args:
        schedule: how many there would be.
        tokens: N, all of them.
        steps: of the generation.
        least: how many the model has to compute, if any.
    """
    counts = [tokens_at(schedule, step, tokens, least) for step in rehearsed(schedule, steps)]
    return (tokens, *counts[1:])


def texts_of(schedule: Schedule, counts: Sequence[int], tokens: int) -> tuple[bool, ...]:
    """Whether the text tokens of joint sequences are computed at each step, of which `counts` image tokens are."""
    texts, age = [], 0
    for step, count in zip(rehearsed(schedule, len(counts)), counts, strict=True):
        age += 1
        texts.append(not 0 < count < tokens or schedule.computes_text(step, age))
        age = 0 if texts[-1] and count else age
    return tuple(texts)


def rehearse(
    model: nn.Module,
    module_map: ModuleMap,
    call: CallPattern,
    plan: Plan,
    steps: int,
    dtype: torch.dtype | None = None,
    cache_device: torch.device | None = None,
) -> Rehearsal:
    """Call a copy of the model as a pruned generation would, once for each number of tokens.

    The tokens are the first ones, whatever the plan's policy would choose: its own memory, numbers for each token, and
    its own arithmetic are not counted.

    Args:
        model: the model, with or without weights.
        module_map: its map.
        call: how it is called.
        plan: how it is pruned.
        steps: of the generation, at least 1.
        dtype: precision of weights and caches; None takes the model's. Models that read values run in their own.
        cache_device: where keys and values lie, as for `apply`; the host's memory, too, is without any here.

    Raises:
        ConfigurationError: the model reads values of its tensors, and it or the arguments are without any.
    """
    grid = module_map.grid(call.arguments)
    tokens = num_tokens(grid)
    schedule = plan.schedule or plan.policy.schedule()
    counts = counts_of(schedule, tokens, steps, module_map.least_tokens)
    texts = texts_of(schedule, counts, tokens)
    pruned = sorted({each for each in map(Computed, counts, texts) if each.tokens not in (0, tokens)})
    arguments = dict(call.arguments)
    if module_map.reads_values and any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigurationError(
            f"{type(model).__name__}: it reads values of its tensors on the way, so that sizes cannot be reckoned "
            f"without weights; name a factory, module.path:factory, that gives the model and arguments of a call"
        )
    if not module_map.reads_values:
        arguments = tree_map(lambda leaf: _like(leaf, dtype), arguments)
    order = [Computed(tokens)] * FULL_STEPS + pruned
    halves = module_map.guidance if call.halves else "none"
    layers: dict[Computed, Layers] = {}
    moved: dict[Computed, tuple[int, int]] = {}

    twin = bare_twin(model) if module_map.reads_values else meta_twin(model, dtype)

    def run() -> None:
        with torch.no_grad(), MetaWins():
            twin(**arguments)

    settings = PruningSettings(
        SequentialPolicy(),
        CountSchedule([each.tokens for each in order], [step for step, each in enumerate(order) if not each.with_text]),
        plan.reuse,
        guidance=halves,
        cache_device=cache_device,
        keeps_keys=schedule.keeps_keys,
    )
    timeline = Timeline(lambda _: _Rehearsed(call.times, len(order)))
    masked = MaskedModule(twin, module_map, settings, timeline)
    masked.install()
    for step, computed in enumerate(order):
        before = _moved(masked)
        for call_of_step in range(call.times):
            if call_of_step or step < FULL_STEPS - 1:  # these are there to fill the caches
                run()
            else:
                with counting() as counted, by_layer(twin, counted) as found:
                    run()
                layers[computed] = {**found, "": counted.macs}
        fetched, returned = _moved(masked)
        moved[computed] = fetched - before[0], returned - before[1]
    generation = masked.generation
    branches = generation.branches.values()
    keys = [buffer for branch in branches for buffer in branch.buffers.values() if buffer.length]
    return Rehearsal(
        grid=grid,
        counts=counts,
        texts=texts,
        layers=layers,
        calls=call.times,
        images=next(iter(generation.branches)).shape[0],
        keys=tuple((buffer.length, sum(tensor.nbytes for tensor in buffer.kept)) for buffer in keys),
        cache_bytes=masked.peak_bytes,
        host_bytes=masked.peak_host_bytes,
        moved=moved,
    )


class _Rehearsed(OneGeneration):
    """Takes every so-many calls for a step of one generation, whatever their timesteps."""

    def __init__(self, calls: int, steps: int) -> None:
        super().__init__(time_rises=False)
        self._each, self._steps = calls, steps
        self._made = 0

    def advance(
        self, timestep: Any, latents: Tensor, name: str = "", others: Mapping[str, Any] = MappingProxyType({})
    ) -> CallPosition:
        step, order = divmod(self._made, self._each)
        self._made += 1
        key, first = BranchKey(order, tuple(latents.shape)), self._made == 1
        left = self._steps - step
        return CallPosition(step, float(left), key, first, order == 0, remaining=left, generation=self._generation)


def _like(leaf: Any, dtype: torch.dtype | None) -> Any:
    """The leaf on the meta device, floating-point numbers in another precision."""
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_like(leaf, device="meta", dtype=dtype if leaf.is_floating_point() else None)


def _moved(masked: MaskedModule) -> tuple[int, int]:
    """Bytes of keys and values that were copied to the device, and from it."""
    return (0, 0) if masked.host is None else masked.host.moved
