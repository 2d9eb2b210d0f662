"""The public face: `apply` a policy to a model, get a `Handle`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tokenprune.compiled import forget_graphs
from tokenprune.engine.cache_conflicts import refuse_caches
from tokenprune.engine.generation import Generation
from tokenprune.engine.masked_module import MaskedModule
from tokenprune.engine.sampler import Sampler
from tokenprune.engine.settings import PruningSettings
from tokenprune.engine.step_tracker import StepTracker
from tokenprune.engine.thread_label import ThreadLabel
from tokenprune.errors import TraceError, UnknownModelError
from tokenprune.macs.counting import count_steps
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.guidance import BranchKey, Guidance
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import best_plan, share_of
from tokenprune.policies.base import SelectionPolicy
from tokenprune.registry import Adapter, find_adapter, transformer_of
from tokenprune.reports.html import facts, in_short
from tokenprune.reports.records import StepRecord
from tokenprune.reports.report import Macs, Report
from tokenprune.reports.trace import Trace
from tokenprune.reuse.base import Hold, Reuse
from tokenprune.schedule import Schedule


class PrunedModel(Protocol):
    """What a handle holds: one model with its hooks, or one whose map is found at its first call."""

    @property
    def model(self) -> nn.Module:
        """The transformer."""

    @property
    def masked(self) -> MaskedModule | None:
        """What prunes it; None while its map is not found yet."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How the map was found, where that is worth telling."""

    def install(self) -> None:
        """Register the hooks."""

    def remove(self) -> None:
        """Take them off."""


class Handle:
    """A pruned model. `remove` ends it; as a context manager it ends with the block."""

    def __init__(self, source: PrunedModel, called: nn.Module, window: ThreadLabel) -> None:
        self._source = source
        self._window = window
        self._called = called
        self._costs: dict[tuple[tuple[torch.Size, ...], int | None], Macs] = {}
        self._removed = False

    def remove(self) -> None:
        """Give the model back as it was: no hooks, no caches. Calling it again does nothing."""
        if not self._removed:
            self._source.remove()
            forget_graphs(self._called)
            self._removed = True

    def reset(self) -> None:
        """Free the caches; the next call of the model starts a generation."""
        if self._masked is not None:
            self._masked.reset()

    def window(self, name: str) -> AbstractContextManager[None]:
        """Calls of the model within belong to a generation of this name, with steps and caches of its own.

        For windows of one large picture or video, and for generations that take turns in one thread: each step calls
        the model once for each of them, with other latents. A window keeps its caches until `reset` or `remove`.

            for time in sampler.timesteps:
                for name, part in parts.items():
                    with handle.window(name):
                        prediction = transformer(part, time, text)

        Args:
            name: any name; the empty one is that of calls outside of windows.
        """
        return self._window.set(name)

    @property
    def _masked(self) -> MaskedModule | None:
        """What prunes the model; None while its map is not found yet."""
        return self._source.masked

    @property
    def map(self) -> ModuleMap | None:
        """The model's map, of an adapter or discovered; None before the first call of a model without adapter."""
        return None if self._masked is None else self._masked.map

    def report(self) -> Report:
        """What the latest generation computed, and what that cost; of a model without adapter, how that was met."""
        masked = self._masked
        notes = self._source.notes
        if masked is None:
            return Report((), 0, 0.0, 0.0, 0, 0, Macs(0, 0), Macs(0, 0), 0, (), None, notes)
        generation = masked.generation  # what is there now: the model may run meanwhile, in another thread
        copies = (replace(record, calls=list(record.calls)) for record in list(generation.records))
        records = tuple(record for record in copies if record.calls)  # a step that is just beginning has none
        costs = self._count_operations(masked, generation, records)
        steps = tuple(record.report() for record in records)
        macs, dense_macs = Macs(0, 0), Macs(0, 0)
        for record in records:
            for call in record.calls:
                macs += costs[call.branch, call.tokens]
                dense_macs += costs[call.branch, None]
        return Report(
            steps=steps,
            generations=masked.generations,
            seconds=sum(step.seconds for step in steps),
            selection_seconds=sum(step.selection_seconds for step in steps),
            tokens=sum(step.tokens for step in steps),
            dense_tokens=sum(step.num_tokens for step in steps),
            macs=macs,
            dense_macs=dense_macs,
            cache_bytes=masked.peak_bytes,
            grid=generation.view.grid,
            token_counts=history.counts.clone() if (history := generation.history) else None,
            notes=notes,
        )

    @property
    def trace(self) -> Trace:
        """What the latest generation did to every token at every step that ended; also after `remove`.

        Raises:
            TraceError: `apply` was not asked to trace.
        """
        generation = self._masked.generation if self._masked is not None else None
        if generation is None or generation.recorder is None:
            raise TraceError("trace: nothing was recorded; ask for it beforehand with apply(..., trace=True)")
        return generation.recorder.trace(generation.records, generation.view.grid)

    def _count_operations(
        self, masked: MaskedModule, generation: Generation, records: Sequence[StepRecord]
    ) -> dict[tuple[BranchKey, int | None], Macs]:
        """What the recorded calls cost, by branch and tokens computed; None stands for the plain model."""
        found: dict[tuple[BranchKey, int | None], Macs] = {}
        for branch, example in dict(generation.examples).items():
            shapes = tuple(leaf.shape for leaf in tree_leaves(example) if isinstance(leaf, Tensor))
            calls = (call for record in records for call in record.calls if call.branch == branch)
            counts = {call.tokens for call in calls} - {0}
            missing = sorted(count for count in counts if (shapes, count) not in self._costs)
            if missing or (shapes, None) not in self._costs:
                full, pruned = count_steps(masked.model, masked.map, example, missing)
                self._costs[shapes, None] = full
                self._costs.update({(shapes, count): cost for count, cost in pruned.items()})
            found[branch, 0], found[branch, None] = Macs(0, 0), self._costs[shapes, None]
            found.update({(branch, count): self._costs[shapes, count] for count in counts})
        return found

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"{self!r}: expected to stay with its model, got copied or pickled; copy or send the model or pipeline, "
            f"which arrives plain, and apply a policy to it there"
        )

    def __repr__(self) -> str:
        masked = self._masked
        if masked is None:
            state = "removed" if self._removed else "before its first call"
            return f"Handle({type(self._source.model).__name__}, {state})"
        state = "removed" if self._removed else f"{masked.generations} generations so far"
        settings = masked.settings
        return (
            f"Handle({type(masked.model).__name__}, {in_short(settings.policy)}, {in_short(settings.schedule)}, "
            f"{in_short(settings.reuse)}: {len(masked.map.blocks)} blocks, {len(masked.map.attentions)} attention "
            f"modules, {state})"
        )

    def _repr_html_(self) -> str:
        masked = self._masked
        state = "removed" if self._removed else "before its first call" if masked is None else "on the model"
        rows: list[tuple[str, object]] = [("model", type(self._source.model).__name__), ("state", state)]
        if masked is not None:
            settings = masked.settings
            parts = (("policy", settings.policy), ("schedule", settings.schedule), ("reuse", settings.reuse))
            rows += [(name, in_short(part)) for name, part in parts]
            rows += [("blocks", len(masked.map.blocks)), ("attention modules", len(masked.map.attentions))]
            rows += [("generations", masked.generations)]
        return facts("Handle", [*rows, *(("note", note) for note in self._source.notes)])


def apply(
    target: Any,
    policy: SelectionPolicy | Plan,
    *,
    schedule: Schedule | None = None,
    reuse: Reuse | None = None,
    adapter: Adapter | None = None,
    guidance: Guidance | None = None,
    guidance_scale: float | None = None,
    trace: bool = False,
    cache_dtype: torch.dtype | None = None,
    discover: bool = True,
) -> Handle:
    """Prune the tokens of a diffusion transformer from its next generation on.

    Nothing in the model is replaced: forward hooks are added, and `Handle.remove` takes them off again.

        handle = tokenprune.apply(pipe.transformer, policy=CATPolicy(alpha=0.3))
        image = pipe("a red circle on a green background").images[0]
        handle.remove()

    Args:
        target: the transformer, or a pipeline that holds it as `transformer`.
        policy: which tokens each step computes; or a `Plan`, which says all three.
        schedule: how many; None takes the policy's own (its `alpha` and `warmup_steps`).
        reuse: what the predictions of all other tokens become; None holds their last computed values.
        adapter: writes the module map of a model that no installed adapter serves.
        guidance: how classifier-free guidance lies in a batch; None finds out at each generation's first call, by
            comparing the halves of the latents. Pass "none" for images that share their initial noise.
        guidance_scale: None shows policies the conditional prediction; a number shows them the guided one.
        trace: record what happens to every token at every step, for `Handle.trace`; costs memory, see `Trace`.
        cache_dtype: what keys and values are kept in, such as torch.float8_e4m3fn in place of the model type: less
            memory, some error, see docs/speed.md. None is the model's own.
        discover: whether to find the map of a model that no adapter serves by watching it at its first call; that call
            raises UnknownModelError, and takes the hook off, where this fails. See docs/discovery.md.

    Raises:
        UnknownModelError: no adapter serves the model, and it may not or cannot be discovered.
        ModuleMapError: the module map names modules that the model lacks.
        AlreadyPrunedError: the model carries another handle's hooks.
        CacheConflictError: the model carries a cache of diffusers that leaves out work.
        TypeError: the policy, schedule, reuse or trace is of another type, or keys cannot be kept in the `cache_dtype`.
    """
    if isinstance(policy, Plan):
        if schedule is not None or reuse is not None:
            raise TypeError("apply: schedule and reuse: expected neither beside a Plan, which has its own")
        plan = policy
        policy, schedule, reuse = plan.policy, plan.schedule, plan.reuse
    for name, value, kind in (
        ("policy", policy, SelectionPolicy),
        ("schedule", schedule, Schedule),
        ("reuse", reuse, Reuse),
        ("trace", trace, bool),
    ):
        if not isinstance(value, kind) and not (value is None and name != "policy"):
            raise TypeError(f"apply: {name}: expected a {kind.__name__} such as {_EXAMPLES[name]}, got {value!r}")
    model = transformer_of(target)
    refuse_caches(model)
    numbers, keeping = schedule or policy.schedule(), reuse or Hold()
    _check_cache_dtype(cache_dtype, keeping)

    sampler, window = None if target is model else Sampler(target), ThreadLabel()
    settings = PruningSettings(policy, numbers, keeping, guidance, guidance_scale, trace, cache_dtype)

    def make(module_map: ModuleMap) -> MaskedModule:
        tracker = StepTracker(module_map.time_rises, guidance != "none", sampler)
        return MaskedModule(model, module_map, settings, tracker, window)

    source: PrunedModel
    try:
        found = adapter or find_adapter(model)
    except UnknownModelError:
        from tokenprune.discovery import PendingModule, may_be_discovered  # takes as long to import as all the rest

        if not discover or not may_be_discovered(model):
            raise
        source = PendingModule(model, make)
    else:
        source = make(found(model))
    called = target if isinstance(target, nn.Module) else target.transformer
    forget_graphs(called)
    source.install()
    return Handle(source, called, window)


def _check_cache_dtype(dtype: torch.dtype | None, reuse: Reuse) -> None:
    """Raise unless what keeps keys and values under a rule can keep them in this type."""
    least = reuse.start_keys().least_bytes
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= least):
        return
    raise TypeError(
        f"apply: cache_dtype: expected a floating type of at least {8 * least} bits for {reuse!r}, such as "
        f"{'torch.float8_e4m3fn' if least == 1 else 'torch.bfloat16'}, got {dtype!r}"
    )


_EXAMPLES = {"policy": "CATPolicy(alpha=0.3)", "schedule": "WarmupSchedule(0.3, 8)", "reuse": "Hold()", "trace": "True"}


def plan(target: Any, budget: float | str = "balanced") -> Plan:
    """The schedule, policy and forecast with the best fidelity known for a share of the plain model's cost.

    A warm-up, a full step every few steps, and between them the tokens with the largest expected error; predictions,
    keys and values of all others are forecast. Found on the tuning captions of the embedded models; docs/analysis.md
    compares it with all else on captions that were not used for that. Other models may have other optima.

        handle = tokenprune.apply(pipe, tokenprune.plan(pipe, budget=0.5))

    Args:
        target: the transformer, or a pipeline that holds it as `transformer`.
        budget: share of the plain model's token computations, above 0 up to 1; or "quality" (0.6), "balanced" (0.5)
            or "fast" (0.35).

    Raises:
        UnknownModelError: no adapter serves the model, and it cannot be discovered.
        ValueError: the budget is neither a share nor a preset's name.
    """
    model = transformer_of(target)
    try:
        find_adapter(model)
    except UnknownModelError:
        from tokenprune.discovery import may_be_discovered

        if not may_be_discovered(model):
            raise
    return best_plan(share_of(budget))
