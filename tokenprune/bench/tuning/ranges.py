"""Ranges of settings to search: those that policies declare, and those of schedules beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from optuna.trial import BaseTrial

from tokenprune.policies.description import Between, OneOf


@dataclass(frozen=True)
class Whole:
    """Whole numbers from `low` to `high`."""

    low: int
    high: int


@dataclass(frozen=True)
class FullSteps:
    """Numbers of full steps, from `low` to as many as the budget allows."""

    low: int


Range: TypeAlias = Between | OneOf | Whole | FullSteps


def suggest(trial: BaseTrial, name: str, among: Range, most: int) -> Any:
    """What a trial tries for a setting, where at most so many steps can be full."""
    match among:
        case Between(low, high, log):
            return trial.suggest_float(name, low, high, log=log)
        case OneOf(values):
            return trial.suggest_categorical(name, values)
        case Whole(low, high):
            return trial.suggest_int(name, low, high)
        case FullSteps(low):
            return trial.suggest_int(name, low, max(low, most))
