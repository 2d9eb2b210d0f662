"""Named lists of configurations, for any number of steps and any share of the plain model's token computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.configurations.key_layers import variants
from tokenprune.bench.configurations.peers.table import configurations as other_packages
from tokenprune.bench.configurations.schedules import PAPER, after_warmup, refreshes, warm_refreshes
from tokenprune.held_text import HeldText
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import PRESETS, best_plan, token_plan
from tokenprune.policies import (
    ALL,
    CATPolicy,
    ClusterRandomPolicy,
    DensePolicy,
    ErrorControlledPolicy,
    SequentialPolicy,
)
from tokenprune.policies.base import SelectionPolicy
from tokenprune.policies.description import Variant
from tokenprune.reuse.base import Hold
from tokenprune.reuse.cluster_correction import ClusterCorrection
from tokenprune.reuse.corrector import Corrector
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import BudgetSchedule, Step

FEWER = (0.25, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85)
"""Shares of the steps at which the plain model is measured, whatever the suite."""


WARMUPS = (8, 4)
"""Full steps at the start: CAT Pruning's eight of 28, and fewer."""


def described() -> Iterator[tuple[type[SelectionPolicy], Variant]]:
    """Every variant of the package's policies, by what they say of themselves."""
    return ((policy, variant) for policy in ALL if policy.description for variant in policy.description.variants)


def fewer_steps(steps: int) -> list[Configuration]:
    """The plain model at its own number of steps and at fewer: in every suite."""
    return [plain(n) for n in dict.fromkeys([steps, *sorted({max(1, round(f * steps)) for f in FEWER}, reverse=True)])]


def ablations(budget: float, steps: int) -> list[Configuration]:
    """Every policy with CAT Pruning's schedule and reuse."""
    return [
        Configuration(_after(variant, warmup), Plan(variant.make(policy), schedule), source=variant.source)
        for policy, variant in described()
        for warmup in variant.suites.get("ablations", ())
        if (schedule := after_warmup(budget, steps, warmup))
    ]


def step_caches(budget: float, steps: int) -> list[Configuration]:
    """Steps that compute everything or nothing, spread evenly or after a warm-up, with every forecast."""
    evenly = {"hold": Hold(), "linear": Taylor(1), "linear, undamped": Taylor(1, False), "quadratic": Taylor(2)}
    plans = {f"evenly, {how}": Plan(DensePolicy(), refreshes(budget, steps), rule) for how, rule in evenly.items()}
    for warmup in WARMUPS:
        if schedule := warm_refreshes(budget, steps, warmup):
            plans[f"after {warmup}, hold"] = Plan(DensePolicy(), schedule)
            plans[f"after {warmup}, linear"] = Plan(DensePolicy(), schedule, Taylor(1))
    source = "step cache after arXiv 2503.06923"
    return [Configuration(f"full steps {name}", plan, source=source) for name, plan in plans.items()]


def forecasts(budget: float, steps: int) -> list[Configuration]:
    """Forecasts, stale keys and cluster correction with few full steps at the start."""
    schedule = after_warmup(budget, steps, WARMUPS[-1])
    if schedule is None:
        return []
    rules = {"linear": Taylor(1), "linear, keys too": Taylor(1, keys=True), "quadratic": Taylor(2)}
    plans = {
        f"{name}, {how}": Plan(policy, schedule, reuse)
        for how, reuse in rules.items()
        for name, policy in (("consecutive rows", SequentialPolicy()), ("error-controlled", ErrorControlledPolicy()))
    }
    found = [Configuration(f"{name}, {WARMUPS[-1]} full steps", plan, source="ours") for name, plan in plans.items()]
    clusters = Plan(ClusterRandomPolicy(), schedule, ClusterCorrection())
    source = "re-implementation of arXiv 2509.10312"
    return [*found, Configuration(f"ClusCa, {WARMUPS[-1]} full steps", clusters, source=source)]


NO_SKIPS = "tokenprune.plan, skips=False"
"""The recommended plan where no step may be skipped."""


def plans(budget: float, steps: int) -> list[Configuration]:
    """The plan that the package recommends, and what each of its parts is worth."""
    best, tokens = best_plan(budget), token_plan(budget)
    parts = {
        "tokenprune.plan": best,
        "tokenprune.plan, not corrected": replace(best, corrector=None),
        "tokenprune.plan, prediction kept": replace(best, corrector=Corrector(response=0.0)),
        "tokenprune.plan, hold": replace(best, reuse=Hold()),
        NO_SKIPS: tokens,
        f"{NO_SKIPS}, CAT's choice": replace(tokens, policy=CATPolicy()),
        f"{NO_SKIPS}, consecutive rows": replace(tokens, policy=SequentialPolicy()),
        f"{NO_SKIPS}, scores not smoothed": replace(tokens, policy=ErrorControlledPolicy(smoothing=0.0)),
        f"{NO_SKIPS}, hold": replace(tokens, reuse=Hold()),
        f"{NO_SKIPS}, keys held": replace(tokens, reuse=Taylor(1)),
        f"{NO_SKIPS}, no full steps between": replace(tokens, schedule=BudgetSchedule(budget, every=None)),
    }
    return [Configuration(name, plan, source="ours") for name, plan in parts.items()]


def plane(budget: float, steps: int) -> list[Configuration]:
    """All of them."""
    return [
        *plans(budget, steps),
        *ablations(budget, steps),
        *step_caches(budget, steps),
        *forecasts(budget, steps),
    ]


def sensitivity(budget: float, steps: int) -> list[Configuration]:
    """The plain model alone: how much the number of steps matters."""
    return [plain(steps), *(plain(n) for n in (50, 28, 20, 14, 10) if n < steps)]


RIVALS = (
    "tokenprune.plan",
    "tokenprune.plan, not corrected",
    "tokenprune.plan, skips=False",
    "plain, {fewer} steps",
    "full steps evenly, hold",
    "full steps evenly, linear",
    "full steps after 4, hold",
    "full steps after 4, linear",
    "full steps after 8, linear",
    "error-controlled, linear, 4 full steps",
    "consecutive rows, linear, keys too, 4 full steps",
    "error-controlled, linear, keys too, 4 full steps",
    "ClusCa, 4 full steps",
)
"""The strongest of each kind in the whole plane at half of the tokens, beside the policies that name the suite."""


def rivals(budget: float, steps: int) -> list[Configuration]:
    """The plan that the package recommends against the strongest of each other kind: a shorter `plane`."""
    fewer = max(1, round(budget * steps))
    names = {name.format(fewer=fewer) for name in RIVALS} | _named("rivals")
    return [configuration for configuration in [plain(fewer), *plane(budget, steps)] if configuration.name in names]


def _named(suite: str) -> set[str]:
    """Names of the ablations that a suite has, as the policies say."""
    return {_after(variant, warmup) for _, variant in described() for warmup in variant.suites.get(suite, ())}


def _after(variant: Variant, warmup: int) -> str:
    return f"{variant.name}, {warmup} full steps"


PEERS = (
    "full steps evenly, hold",
    "full steps evenly, linear",
    "full steps after 8, linear",
    "full steps after 4, linear",
    "ClusCa, 4 full steps",
)
"""The strongest step caches, and a re-implementation; beside the policies that name the suite."""


LOW_BUDGET = 0.35
"""Share of the token computations at which the recommended plan stands beside the peers as well."""


def peers(budget: float, steps: int) -> list[Configuration]:
    """What a user would pick instead: other packages as they are, and what they have none of, re-implemented."""
    ours = {f"tokenprune.plan, {share}": best_plan(share) for share in (budget, LOW_BUDGET)}
    ours |= {f"{NO_SKIPS}, {share}": token_plan(share) for share in (budget, LOW_BUDGET)}
    return [
        *(Configuration(name, plan, source="ours") for name, plan in ours.items()),
        *(configuration for configuration in plane(budget, steps) if configuration.name in {*PEERS, *_named("peers")}),
        *other_packages(steps),
    ]


def presets(budget: float, steps: int) -> list[Configuration]:
    """The named plans, each beside the plain model with as many fewer steps; they have budgets of their own."""
    found = []
    for name, share in PRESETS.items():
        found.append(Configuration(f"tokenprune.plan, {name}", best_plan(share), source="ours"))
        found.append(plain(max(1, round(share * steps))))
    return found


def paper(budget: float, steps: int) -> list[Configuration]:
    """CAT Pruning, its ablations and its baseline as in its tables: alpha 0.3, 8 full steps, of 28 or of 50.

    Beside them the plain model with as many steps as cost the same. The paper's numbers of steps have a run each, as
    pictures are compared with those of the plain model at the same number of steps.
    """
    share = sum(PAPER.fraction(Step(i, 0.0, 0.0, None)) for i in range(steps))
    return [
        *(
            Configuration(variant.name, Plan(variant.make(policy), PAPER), source=variant.source)
            for policy, variant in described()
            if "paper" in variant.suites
        ),
        plain(max(1, round(share))),
    ]


def speed(budget: float, steps: int) -> list[Configuration]:
    """CAT Pruning with its own settings and the recommended plan, each as it is and with compiled blocks."""
    plans = {
        "plain": None,
        "CAT": Plan(CATPolicy(PAPER.alpha), PAPER),
        f"tokenprune.plan, {budget}": best_plan(budget),
        f"{NO_SKIPS}, {budget}": token_plan(budget),
    }
    eager = [Configuration(name, plan) for name, plan in plans.items() if plan is not None]
    fewer = plain(max(1, round(budget * steps)))
    return [fewer, *eager, *(Configuration(f"{name}, compiled", plan, compiled=True) for name, plan in plans.items())]


STORAGE = (None, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
"""Types to keep keys and values in; None is the model's own."""


def storage(budget: float, steps: int) -> list[Configuration]:
    """Keys and values in smaller types, as far as they can be held or forecast in them."""
    schedule, plans = after_warmup(budget, steps, WARMUPS[-1]), {NO_SKIPS: token_plan(budget)}
    if schedule is not None:
        plans["CAT"] = Plan(CATPolicy(), schedule)
    configurations = [
        Configuration(f"{name}, {'own type' if dtype is None else str(dtype)}", plan, cache_dtype=dtype)
        for name, plan in plans.items()
        for dtype in STORAGE
        if dtype is None or dtype.itemsize >= plan.reuse.start_keys().least_bytes
    ]
    return [plain(max(1, round(budget * steps))), *configurations]


def layers(budget: float, steps: int) -> list[Configuration]:
    """Keys and values that are forecast in some attention modules, and held in the others."""
    forecast = [Configuration(f"{NO_SKIPS}, keys forecast {where}", plan) for where, plan in variants(budget)]
    return [plain(max(1, round(budget * steps))), *forecast]


TEXT_EVERY = (1, 2, 4, None)
"""How old held text may become: computed at every step, every second, every fourth, at full ones only."""


def text(budget: float, steps: int) -> list[Configuration]:
    """Steps that hold the text's keys and values in place of computing them, with CAT and with the pruned plan."""
    schedule, plans = after_warmup(budget, steps, WARMUPS[-1]), {NO_SKIPS: token_plan(budget)}
    if schedule is not None:
        plans["CAT, published constants"] = Plan(CATPolicy.published(), schedule)
    found = [plain(max(1, round(budget * steps)))]
    for name, plan in plans.items():
        for every in TEXT_EVERY:
            when = "at full steps" if every is None else f"every {every} steps" if every > 1 else "always"
            held = replace(plan, schedule=HeldText(plan.schedule or plan.policy.schedule(), every))
            found.append(Configuration(f"{name}, text {when}", held, source="ours"))
    return found


SHORT = ("sensitivity", "rivals", "presets", "speed", "storage", "layers", "text")
"""Suites without the usual numbers of plain steps."""


WITHOUT_BUDGET = ("sensitivity", "presets", "paper")
"""Suites that no budget changes."""


SUITES: dict[str, Callable[[float, int], Sequence[Configuration]]] = {
    "sensitivity": sensitivity,
    "paper": paper,
    "ablations": ablations,
    "step-caches": step_caches,
    "forecasts": forecasts,
    "plans": plans,
    "presets": presets,
    "rivals": rivals,
    "peers": peers,
    "plane": plane,
    "speed": speed,
    "text": text,
    "storage": storage,
    "layers": layers,
}


def make(name: str, budget: float, steps: int) -> list[Configuration]:
    """The named suite; the plain model with fewer steps comes first in all.

    Raises:
        KeyError: no suite has this name.
    """
    found = [*([] if name in SHORT else fewer_steps(steps)), *SUITES[name](budget, steps)]
    return list({configuration.name: configuration for configuration in found}.values())
