"""The public face: `apply` a policy to a model or pipeline, get a `Handle`."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tokenprune.engine.cache_conflicts import refuse_hooks
from tokenprune.engine.cache_limit import bytes_of
from tokenprune.engine.correction import SamplerCorrection
from tokenprune.engine.foreign_forwards import misfits_explained, refuse_foreign_forwards
from tokenprune.engine.host_caches import refuse_compiled
from tokenprune.engine.masked_module import MaskedModule
from tokenprune.engine.parallelism import DIVIDING
from tokenprune.engine.pruning_watch import PruningWatch
from tokenprune.engine.sampler import Sampler
from tokenprune.engine.settings import PruningSettings
from tokenprune.engine.step_tracker import StepTracker
from tokenprune.engine.thread_label import ThreadLabel
from tokenprune.engine.timeline import Timeline
from tokenprune.errors import UnknownModelError
from tokenprune.expectation import on_one_line, told_in_advance
from tokenprune.handles import Handle, Part, PrunedModel
from tokenprune.modulemap import ModuleMap
from tokenprune.notices import LOGGER, Notices
from tokenprune.ops.guidance import Guidance
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import best_plan, share_of, token_plan
from tokenprune.policies.base import SelectionPolicy
from tokenprune.registry import Adapter, find_adapter, may_be_discovered
from tokenprune.reuse.base import Hold, Reuse
from tokenprune.reuse.corrector import Corrector
from tokenprune.schedule import Schedule
from tokenprune.setting_types import check
from tokenprune.targets import refuse_other_models, target_of, transformer_of


def apply(
    target: Any,
    policy: SelectionPolicy | Plan,
    *,
    schedule: Schedule | None = None,
    reuse: Reuse | None = None,
    corrector: Corrector | None = None,
    adapter: Adapter | None = None,
    guidance: Guidance | None = None,
    guidance_scale: float | Mapping[str, float] | None = None,
    trace: bool = False,
    cache_dtype: torch.dtype | None = None,
    cache_limit: str | int | None = None,
    cache_device: str | torch.device | None = None,
    discover: bool = True,
    transformers: str | Sequence[str] | None = None,
    scheduler: Any = None,
) -> Handle:
    """Prune the tokens of a diffusion transformer, or of all those of a pipeline, from the next generation on.

    Nothing in the model is replaced: forward hooks are added, and `Handle.remove` takes them off again.

        handle = tokenprune.apply(pipe.transformer, policy=CATPolicy(alpha=0.3))
        image = pipe("a red circle on a green background").images[0]
        handle.remove()

    Args:
        target: the transformer, or a pipeline that holds it as `transformer`. Where a pipeline has several (experts for
            parts of the noise levels, as Wan 2.2's `transformer_2`; one for each guidance branch), one handle prunes
            them all, and counts steps over the whole generation.
        policy: which tokens each step computes; or a `Plan`, which also holds the next three arguments.
        schedule: how many tokens each step computes; None takes the policy's own (its `alpha` and `warmup_steps`).
        reuse: what the predictions of all other tokens become; None holds their last computed values.
        corrector: how the effect of forecasts on the latents is corrected at full steps; it needs the pipeline. None
            corrects nothing.
        adapter: writes the module map of a model that no installed adapter serves.
        guidance: how classifier-free guidance lies in a batch: "none", "uncond-first", "cond-first", or
            "uncond-cond-perturbed", with a third part for perturbed-attention guidance. None finds out at each
            generation's first call, by comparing the parts of the latents. Pass "none" for images that share their
            initial noise.
        guidance_scale: None shows policies the conditional prediction; a number shows them the guided one. A mapping
            has a number for each transformer of a pipeline, by name (Wan 2.2's `guidance_scale_2` is that of
            "transformer_2").
        trace: record what happens to every token at every step, for `Handle.trace`; costs memory, see `Trace`.
        cache_dtype: what keys and values are kept in, such as torch.bfloat16, or torch.int8 with a scale for each row,
            in place of the model's type: less memory, some error, see docs/speed.md. None is the model's own.
        cache_limit: the most memory that all caches may hold together on the model's own devices, as "8GiB" or in
            bytes; None is no limit. The model's first call that would make them hold more raises CacheLimitError: sizes
            of pictures, batches and texts are known only then.
        cache_device: "cpu" keeps keys and values in host memory, and brings those of each attention module to its
            device while the one before it runs, see docs/memory.md; blocks may be compiled, the model as a whole must
            not be. None keeps them on the device.
        discover: whether to find the map of a model that no adapter serves by watching it at its first call; that call
            raises UnknownModelError, and takes the hook off, where this fails. See docs/discovery.md.
        transformers: which of a pipeline's transformers to prune, by name; None prunes all.
        scheduler: where the target is a model that a loop of your own calls, the diffusers scheduler of that loop. It
            tells how many steps are left, and `corrector` needs it. A pipeline has its own.

    Raises:
        UnknownModelError: no adapter serves the model, and it may not or cannot be discovered.
        UnsupportedModelError: it is known that it cannot be pruned: a U-Net, an autoencoder, a text encoder, replicas.
        ModuleMapError: the module map names modules that the model lacks.
        AlreadyPrunedError: the model carries another handle's hooks.
        CacheConflictError: the model carries a cache, of diffusers or of another package, that leaves out work.
        HookConflictError: the model carries hooks of others that mix tokens.
        TypeError: an argument is of another type, or keys cannot be kept in the `cache_dtype`.
        ValueError: `transformers` or `guidance_scale` names a transformer that the pipeline has not, `guidance` is none
            of these, `cache_limit` is no amount of memory, or `cache_device` is neither None nor "cpu".
    """
    if isinstance(policy, Plan):
        if schedule is not None or reuse is not None or corrector is not None:
            raise TypeError("apply: schedule, reuse and corrector: expected none beside a Plan, which has its own")
        plan = policy
        policy, schedule, reuse, corrector = plan.policy, plan.schedule, plan.reuse, plan.corrector
    wanted = (
        ("policy", policy, SelectionPolicy),
        ("schedule", schedule, Schedule | None),
        ("reuse", reuse, Reuse | None),
        ("corrector", corrector, Corrector | None),
        ("adapter", adapter, Callable | None),
        ("guidance", guidance, Guidance | None),
        ("guidance_scale", guidance_scale, float | Mapping | None),
        ("trace", trace, bool),
        ("cache_limit", cache_limit, str | int | None),
        ("cache_device", cache_device, str | torch.device | None),
        ("discover", discover, bool),
        ("transformers", transformers, str | Sequence | None),
    )
    for name, value, kind in wanted:
        check(f"apply: {name}", value, kind, _EXAMPLES.get(name, ""))
    named = target_of(target, transformers)
    sampler = _sampler(target, scheduler, named.is_pipeline)
    scales = _by_name(guidance_scale, list(named.models))
    for model in named.models.values():
        refuse_hooks(model, served=DIVIDING)  # which are looked at with the model's map
        refuse_foreign_forwards(model)
    numbers, keeping = schedule or policy.schedule(), reuse or Hold()
    _check_cache_dtype(cache_dtype, keeping)
    most_bytes = None if cache_limit is None else bytes_of(cache_limit)
    resting = None if cache_device is None else _host(cache_device)

    window, notices = ThreadLabel(), Notices()
    correction = SamplerCorrection(sampler, corrector) if corrector is not None and sampler is not None else None
    timeline = Timeline(
        lambda rises: StepTracker(rises, guidance != "none", sampler),
        window,
        PruningWatch(numbers, notices),
        correction,
        most_bytes,
    )
    parts: dict[str, Part] = {}
    for name, model in named.models.items():
        if resting is not None and numbers.keeps_keys:
            refuse_compiled(named.called[name], type(model).__name__)
        settings = PruningSettings(
            policy, numbers, keeping, guidance, scales[name], trace, cache_dtype, resting, keeps_keys=numbers.keeps_keys
        )
        make = partial(MaskedModule, model, settings=settings, timeline=timeline)
        parts[name] = Part(_source(model, make, adapter, discover), named.called[name])
    whole = Plan(policy, schedule, keeping, corrector)
    handle = Handle(parts, timeline, window, notices, lambda: on_one_line(told_in_advance(target, whole, adapter)))
    handle.install()
    if corrector is not None and correction is None:
        notices.warn(
            "corrector",
            "the corrector needs the sampler, and is left out: give apply the pipeline, or the scheduler of your own "
            "loop (scheduler=...)",
        )
    if LOGGER.isEnabledFor(logging.INFO):  # it takes some seconds for large models
        notices.inform("expectation", handle.told_in_advance)
    if len(parts) > 1:
        notices.inform(
            "transformers",
            f"{len(parts)} transformers are pruned: {', '.join(parts)}; apply(..., transformers=...) chooses",
        )
    return handle


def _source(
    model: nn.Module, make: Callable[[ModuleMap], MaskedModule], adapter: Adapter | None, discover: bool
) -> PrunedModel:
    """The model with its hooks, or one whose map is found at its first call."""
    try:
        found = adapter or find_adapter(model)
    except UnknownModelError:
        refuse_other_models(model)
        if not discover or not may_be_discovered(model):
            raise
        from tokenprune.discovery import PendingModule  # takes as long to import as all the rest

        return PendingModule(model, make)
    with misfits_explained(model):
        return make(found(model))


def _sampler(target: Any, scheduler: Any, is_pipeline: bool) -> Sampler | None:
    """The pipeline's sampler, or that of the user's own loop; None where neither is known."""
    if scheduler is None:
        return Sampler(target) if is_pipeline else None
    if is_pipeline:
        raise TypeError(
            f"apply: scheduler: expected none beside a pipeline, whose own is used, got {type(scheduler).__name__}; "
            f"set pipe.scheduler to draw with another one"
        )
    if not callable(getattr(scheduler, "step", None)) or not hasattr(scheduler, "timesteps"):
        raise TypeError(
            f"apply: scheduler: expected a scheduler of diffusers, with `timesteps` and `step`, such as "
            f"FlowMatchEulerDiscreteScheduler(), got {scheduler!r}"
        )
    return Sampler(SimpleNamespace(scheduler=scheduler))


def _by_name(scale: float | Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float | None]:
    """The guidance scale of each transformer."""
    if not isinstance(scale, Mapping):
        return dict.fromkeys(names, scale)
    for name, value in scale.items():
        check(f"apply: guidance_scale[{name!r}]", value, float | None)
    if set(scale) != set(names):
        raise ValueError(
            f"apply: guidance_scale: expected a number for each of {', '.join(names)}, got {', '.join(map(str, scale))}"
        )
    return dict(scale)


def _check_cache_dtype(dtype: torch.dtype | None, reuse: Reuse) -> None:
    """Raise unless what keeps keys and values under a rule can keep them in this type."""
    least = reuse.start_keys().least_bytes
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= least
    if dtype is None or floating or (dtype == torch.int8 and least == 1):
        return
    whole = " or torch.int8" if least == 1 else ""
    raise TypeError(
        f"apply: cache_dtype: expected a floating type of at least {8 * least} bits{whole} for {reuse!r}, such as "
        f"torch.bfloat16, got {dtype!r}"
    )


def _host(device: str | torch.device) -> torch.device:
    """The device of host memory that keys and values are to lie in.

    Raises:
        ValueError: it is another one.
    """
    if str(device) != "cpu":
        raise ValueError(
            f'apply: cache_device: expected "cpu", or None for the device of the model, got {str(device)!r}; keys and '
            f"values can lie in host memory alone"
        )
    return torch.device("cpu")


_EXAMPLES = {
    "policy": "CATPolicy(alpha=0.3)",
    "schedule": "WarmupSchedule(0.3, 8)",
    "reuse": "Hold()",
    "corrector": "Corrector()",
    "cache_limit": '"8GiB"',
    "cache_device": '"cpu"',
}


def plan(
    target: Any,
    budget: float | str = "balanced",
    *,
    macs: float | None = None,
    speedup: float | None = None,
    skips: bool = True,
) -> Plan:
    """The schedule, policy and forecast with the best fidelity known for a share of the plain model's cost.

    Full steps are placed by the noise level (`PlacedSchedule`). All other steps are skipped and forecast
    along a line, and the effect of that on the latents is corrected at the next full step (`Corrector`). As steps are
    full or skipped, tokens and operations have the same share, which is kept exactly. docs/analysis.md compares this
    plan with others on three models, and under settings that played no part in its choice.

        handle = tokenprune.apply(pipe, tokenprune.plan(pipe, macs=0.5))

    Give `apply` the pipeline, not its transformer: the corrector needs the sampler. Printed, or shown in a notebook,
    the plan says what each kind of step and a whole generation will cost on this model, and what its caches will
    hold; `expect` takes other sizes and numbers of steps.

    Args:
        target: the transformer, or a pipeline that holds it as `transformer`.
        budget: share of the plain model's computations, above 0 up to 1; or "quality" (0.6), "balanced" (0.5) or
            "fast" (0.35).
        macs: the same as a number, where it is to be clear that operations are meant.
        speedup: the same as how many times fewer operations, at least 1.
        skips: False gives the best plan known that computes some tokens at every step, for models that cannot skip
            steps; the budget is then one of token computations, and operations fall by less.

    Raises:
        UnknownModelError: no adapter serves the model, and it cannot be discovered.
        UnsupportedModelError: it is known that it cannot be pruned.
        TypeError: a cost is of another type.
        ValueError: the budget is neither a share nor a preset's name, or several costs are given.
    """
    for name, value, kind in (
        ("budget", budget, float | str),
        ("macs", macs, float | None),
        ("speedup", speedup, float | None),
        ("skips", skips, bool),
    ):
        check(f"plan: {name}", value, kind)
    model = transformer_of(target)
    try:
        find_adapter(model)
    except UnknownModelError:
        refuse_other_models(model)
        if not may_be_discovered(model):
            raise
    cost = _cost(budget, macs, speedup)
    found = best_plan(cost) if skips else token_plan(cost)
    return found.telling(_teller(target, found))


def _teller(target: Any, plan: Plan) -> Callable[[], str]:
    """What a plan says of its model where it is printed; worked out once, and the model is not kept alive for it."""
    reference = weakref.ref(target) if type(target).__weakrefoffset__ else lambda: target

    @cache
    def tell() -> str:
        known = reference()
        return "the model that this plan was made for is gone" if known is None else told_in_advance(known, plan)

    return tell


def _cost(budget: float | str, macs: float | None, speedup: float | None) -> float:
    """The share of the plain model's cost that one of these says."""
    given = [cost for cost in (macs, speedup) if cost is not None]
    if len(given) > 1 or (given and budget != "balanced"):
        raise ValueError(f"plan: expected one of budget, macs and speedup, got {budget!r}, {macs!r} and {speedup!r}")
    if macs is not None:
        return macs
    if speedup is None:
        return share_of(budget)
    if not speedup >= 1:
        raise ValueError(f"speedup: expected a number of at least 1, got {speedup!r}")
    return 1 / speedup
