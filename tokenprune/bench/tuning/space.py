"""What `tokenprune tune` searches: schedules, policies and forecasts with ranges for their settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from math import floor
from typing import Any

from optuna.trial import BaseTrial, FixedTrial

from tokenprune.bench.configurations.schedules import after_warmup, refreshes, warm_refreshes
from tokenprune.bench.configurations.suites import described
from tokenprune.bench.tuning.ranges import FullSteps, Range, Whole, suggest
from tokenprune.placement import PlacedSchedule
from tokenprune.plans.plan import Plan
from tokenprune.policies import DensePolicy
from tokenprune.policies.description import Between, OneOf
from tokenprune.reuse.base import Hold
from tokenprune.reuse.corrector import Corrector
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import BudgetSchedule, ListSchedule, RefreshSchedule, Schedule, rehearsed

TOLERANCE = 1e-6


FINENESS = 500
"""Parts of the budget in which the share of the tokens is sought that it allows."""


Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """A schedule, policy or forecast with settings to search.

    Attributes:
        make: of the settings by name; of a schedule also of `share` of the token computations and `steps`, and None
            where the settings exceed the share.
        ranges: of the settings.
        selects: whether a schedule ever computes some of the tokens, so that it needs a policy.
    """

    make: Callable[..., Any]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    selects: bool = True


def _refreshing(share: float, steps: int, every: int, warmup_steps: int, last_full: int) -> Schedule | None:
    """Full steps no closer than `every`, and as close as the share allows."""
    for distance in range(every, steps + 1):
        full = sum(fractions(RefreshSchedule(distance, 0.0, warmup_steps, last_full), steps))
        if full < steps and full <= share * steps:
            return RefreshSchedule(distance, (share * steps - full) / (steps - full), warmup_steps, last_full)
    return None


def _ramp(share: float, steps: int, every: int | None, warmup_steps: int, tilt: float) -> Schedule | None:
    """Full steps as before; between them fractions that fall (tilt > 0) or rise along a line."""
    spread = RefreshSchedule(every or steps, 0.0, warmup_steps)
    full = [fraction == 1 for fraction in fractions(spread, steps)]
    rest = steps - sum(full)
    mean = (share * steps - sum(full)) / rest if rest else 0.0
    if mean <= 0:
        return None
    most = min(abs(tilt), 1 / mean - 1)
    slope = most if tilt > 0 else -most
    between_full = iter(mean * (1 + slope * (1 - 2 * i / max(1, rest - 1))) for i in range(rest))
    return ListSchedule(tuple(1.0 if is_full else min(1.0, max(0.0, next(between_full))) for is_full in full))


def _step_cache(share: float, steps: int, warmup_steps: int) -> Schedule | None:
    """Full steps and none between, evenly or after a warm-up; never more than the share, which may not divide them."""
    within = floor(share * steps + 1e-9) / steps
    return warm_refreshes(within, steps, warmup_steps) if warmup_steps else refreshes(within, steps)


SCHEDULES: dict[str, Choice] = {
    "budget": Choice(
        lambda share, steps, **settings: BudgetSchedule(share, steps=steps, **settings),
        {"warmup": Between(0.0, 0.4), "least_warmup": Whole(1, 6), "every": OneOf((None, 2, 3, 4, 5, 6))},
    ),
    "warm-up": Choice(
        lambda share, steps, warmup_steps: after_warmup(share, steps, warmup_steps), {"warmup_steps": FullSteps(1)}
    ),
    "refreshing": Choice(_refreshing, {"every": Whole(2, 8), "warmup_steps": FullSteps(1), "last_full": Whole(0, 2)}),
    "ramp": Choice(
        _ramp, {"every": OneOf((None, 2, 3, 4, 5, 6)), "warmup_steps": FullSteps(1), "tilt": Between(-1.0, 1.0)}
    ),
    "placed": Choice(lambda share, steps: PlacedSchedule(share, steps), selects=False),
    "step cache": Choice(_step_cache, {"warmup_steps": FullSteps(0)}, selects=False),
}


POLICIES: dict[str, Choice] = {
    variant.name: Choice(partial(variant.make, policy), variant.searched)
    for policy, variant in described()
    if variant.searched is not None
}
"""What the policies say of themselves."""


FORECASTS: dict[str, Choice] = {
    "hold": Choice(Hold),
    "linear": Choice(partial(Taylor, 1), {"damped": OneOf((True, False)), "keys": OneOf((True, False))}),
    "quadratic": Choice(partial(Taylor, 2), {"damped": OneOf((True, False)), "keys": OneOf((True, False))}),
}


CORRECTORS: dict[str, Choice] = {
    "none": Choice(lambda: None),
    "corrected": Choice(Corrector),
    "corrected, fixed": Choice(Corrector, {"response": Between(0.0, 40.0)}),
}


PARTS = {"schedule": SCHEDULES, "policy": POLICIES, "reuse": FORECASTS, "corrector": CORRECTORS}


def digest() -> str:
    """The same for the same space: trials of another one cannot be gone on with."""
    told = [[kind, name, repr(dict(choice.ranges))] for kind, found in PARTS.items() for name, choice in found.items()]
    return sha256(json.dumps(told).encode()).hexdigest()[:16]


OURS = "tokenprune.plan"


def _usual(kind: str, name: str, **given: Any) -> dict[str, Any]:
    """Parameters of a policy or forecast with its default settings, but for those given."""
    choice = PARTS[kind][name]
    usual = choice.make()
    return {kind: name, **{f"{name}.{key}": given.get(key, getattr(usual, key)) for key in choice.ranges}}


def _warm(steps: int, policy: str, reuse: Settings) -> dict[str, Any]:
    return {"schedule": "warm-up", "warm-up.warmup_steps": steps, **_usual("policy", policy), **reuse}


def _cached(warmup_steps: int, reuse: Settings) -> dict[str, Any]:
    return {"schedule": "step cache", "step cache.warmup_steps": warmup_steps, **reuse}


_NONE = {"corrector": "none"}
_HOLD, _LINEAR = _usual("reuse", "hold") | _NONE, _usual("reuse", "linear") | _NONE
_KEYS = _usual("reuse", "linear", keys=True) | _NONE


PRESETS: dict[str, dict[str, Any]] = {
    OURS: {"schedule": "placed", **_LINEAR, **_usual("corrector", "corrected")},
    f"{OURS}, skips=False": {
        "schedule": "budget",
        "budget.warmup": 0.18,
        "budget.least_warmup": 4,
        "budget.every": 3,
        **_usual("policy", "error-controlled"),
        **_KEYS,
    },
    "error-controlled, linear, keys too, 4 full steps": _warm(4, "error-controlled", _KEYS),
    "CAT, 8 full steps": _warm(8, "CAT", _HOLD),
    "CAT, 4 full steps": _warm(4, "CAT", _HOLD),
    "CAT, published constants, 4 full steps": _warm(4, "CAT, published constants", _HOLD),
    "full steps evenly, hold": _cached(0, _HOLD),
    "full steps evenly, linear": _cached(0, _LINEAR),
    "full steps after 4, linear": _cached(4, _LINEAR),
}
"""Points of the space that are always tried, by their names in the suites."""


@dataclass(frozen=True)
class Costs:
    """What a generation costs, as a share of the plain model's.

    A pruned step that computes a fraction f of the tokens costs `base + slope f` of a full one, one without tokens 0.

    Attributes:
        steps: steps that the model sees in a generation.
        base: 0 in token computations; in MACs what text tokens take, and attention's constants.
        slope: 1 in token computations.
    """

    steps: int
    base: float = 0.0
    slope: float = 1.0

    def share(self, schedule: Schedule) -> float:
        """Cost of a generation with the schedule."""
        of_each = (f if f in (0, 1) else self.base + self.slope * f for f in fractions(schedule, self.steps))
        return sum(of_each) / self.steps


def fractions(schedule: Schedule, steps: int) -> list[float]:
    """The schedule's fraction of each step of a generation, at evenly falling noise levels."""
    return [schedule.fraction(step) for step in rehearsed(schedule, steps)]


@dataclass(frozen=True)
class Space:
    """Every plan that keeps to a budget.

    Attributes:
        budget: share of the plain model's cost, above 0 and below 1.
        costs: what is counted.
    """

    budget: float
    costs: Costs

    def plan(self, trial: BaseTrial) -> Plan | None:
        """The plan that a trial suggests, with the largest share of the tokens that the budget allows.

        None where its schedule exceeds the budget whatever the share.
        """
        choice, settings = self._suggest(trial, "schedule")
        schedule = self._within(choice.make, settings)
        if schedule is None:
            return None
        policy = self._part(trial, "policy") if choice.selects else DensePolicy()
        return Plan(policy, schedule, self._part(trial, "reuse"), self._part(trial, "corrector"))

    def presets(self) -> dict[str, dict[str, Any]]:
        """Parameters of the presets that the budget allows."""
        found = {}
        for name, params in PRESETS.items():
            full = max(value for key, value in {"": 0, **params}.items() if not key or key.endswith("warmup_steps"))
            if full <= self._most_full and self.plan(FixedTrial(params)) is not None:
                found[name] = params
        return found

    @property
    def _most_full(self) -> int:
        """Full steps at the start after which the budget leaves something."""
        return max(0, -floor(-self.budget * self.costs.steps + 1e-9) - 1)

    def _suggest(self, trial: BaseTrial, kind: str) -> tuple[Choice, dict[str, Any]]:
        name = trial.suggest_categorical(kind, list(PARTS[kind]))
        choice = PARTS[kind][name]
        most = self._most_full
        settings = {key: suggest(trial, f"{name}.{key}", among, most) for key, among in choice.ranges.items()}
        return choice, settings

    def _part(self, trial: BaseTrial, kind: str) -> Any:
        choice, settings = self._suggest(trial, kind)
        return choice.make(**settings)

    def _within(self, make: Callable[..., Schedule | None], settings: Settings) -> Schedule | None:
        """The schedule with the largest share of the tokens that the budget allows."""
        for part in range(FINENESS, 0, -1):
            share = self.budget * part / FINENESS
            schedule = make(share=share, steps=self.costs.steps, **settings)
            if schedule is None or self.costs.share(schedule) <= self.budget + TOLERANCE:
                return schedule
        return None
