"""Suites keep to their budget, and every plan of theirs runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import tokenprune
from tokenprune.bench.configurations.suites import SUITES, WITHOUT_BUDGET, make
from tokenprune.schedule import Step

STEPS = [10, 28, 50]
AT_EDM = "AT-EDM's choice"


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("budget", [0.35, 0.5, 0.8])
@pytest.mark.parametrize("name", sorted(set(SUITES) - {*WITHOUT_BUDGET, "peers", "speed"}))
def test_plans_compute_the_budget(name: str, budget: float, steps: int) -> None:
    pruned = [configuration for configuration in make(name, budget, steps) if configuration.plan is not None]
    assert pruned or budget * steps <= 4  # no room for the four full steps of the shortest warm-up
    for configuration in pruned:
        assert configuration.plan is not None
        schedule = configuration.plan.schedule or configuration.plan.policy.schedule()
        shares = [schedule.fraction(Step(i, 1000.0 - i, 1 - i / steps, steps - i)) for i in range(steps)]
        assert shares[0] == 1
        assert sum(shares) / steps == pytest.approx(budget, abs=max(0.02, 0.51 / steps)), configuration.name


@pytest.mark.parametrize("name", sorted(SUITES))
def test_names_are_unique_and_the_plain_model_is_in(name: str) -> None:
    found = make(name, 0.5, 28)
    assert len({configuration.name for configuration in found}) == len(found)
    plain = [configuration.steps for configuration in found if configuration.plan is None]
    assert 14 in plain


@pytest.mark.parametrize(("steps", "share"), [(28, (8 + 0.3 * 20) / 28), (50, (8 + 0.3 * 42) / 50)])
def test_the_papers_suite_keeps_to_the_papers_settings(steps: int, share: float) -> None:
    found = {configuration.name: configuration for configuration in make("paper", 0.9, steps)}
    pruned = {name: configuration.plan for name, configuration in found.items() if configuration.plan is not None}
    assert [*pruned] == ["CAT", "CAT, published constants", "noise", "noise and staleness", "consecutive rows", AT_EDM]
    assert pruned["CAT"] == tokenprune.Plan(tokenprune.CATPolicy(0.3, 8), tokenprune.WarmupSchedule(0.3, 8))
    assert pruned["CAT, published constants"].policy == tokenprune.CATPolicy.published(0.3, 8)
    assert {plan.schedule for plan in pruned.values()} == {tokenprune.WarmupSchedule(0.3, 8)}
    assert found[f"plain, {steps} steps"].steps == steps
    assert found[f"plain, {round(share * steps)} steps"].plan is None


@pytest.mark.parametrize("configuration", [c for c in make("plane", 0.5, 8) if c.plan], ids=lambda c: c.name)
def test_every_plan_runs(configuration: Any, sd3: nn.Module, generate: Callable[..., Any]) -> None:
    with tokenprune.apply(sd3, configuration.plan) as handle:
        generate(sd3, steps=8)
        assert 0.3 < handle.report().tokens_ratio < 0.7
