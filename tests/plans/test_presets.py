"""Budgets, and the plans that are known to do well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tokenprune
from tokenprune import (
    BudgetSchedule,
    CATPolicy,
    Corrector,
    Hold,
    Plan,
    Schedule,
    Step,
    Taylor,
    UnknownModelError,
    WarmupSchedule,
)
from tokenprune.plans.presets import PRESETS


def fractions(schedule: Schedule, steps: int, known: bool = True) -> list[float]:
    return [schedule.fraction(Step(i, 1000.0 - i, 1 - i / steps, steps - i if known else None)) for i in range(steps)]


@given(
    budget=st.floats(0.05, 1),
    warmup=st.floats(0, 1),
    least=st.integers(1, 9),
    every=st.none() | st.integers(1, 9),
    steps=st.integers(1, 120),
)
def test_a_budget_is_kept_for_any_number_of_steps(
    budget: float, warmup: float, least: int, every: int | None, steps: int
) -> None:
    found = fractions(BudgetSchedule(budget, warmup, least, every), steps)
    assert found[0] == 1
    assert all(0 < fraction <= 1 for fraction in found)
    assert len(set(found)) <= 2
    least = 1 + (steps - 1) * BudgetSchedule.LEAST
    assert sum(found) == pytest.approx(max(budget * steps, least))


def test_the_full_steps_of_a_budget() -> None:
    found = fractions(BudgetSchedule(0.5, 0.18, every=4), 28)
    assert [i for i, fraction in enumerate(found) if fraction == 1] == [0, 1, 2, 3, 4, 8, 12, 16, 20, 24]
    assert min(found) == pytest.approx(4 / 18)
    assert [i for i, f in enumerate(fractions(BudgetSchedule(0.5, 0.2, every=None), 20)) if f == 1] == [0, 1, 2, 3]
    few = fractions(BudgetSchedule(0.55), 10)
    assert [i for i, fraction in enumerate(few) if fraction == 1] == [0, 1, 2, 3, 7]
    sparse = fractions(BudgetSchedule(0.35, 0.18, every=3), 28)
    assert [i for i, fraction in enumerate(sparse) if fraction == 1] == [0, 1, 2, 3, 4, 10, 16, 22]


def test_unknown_lengths_are_planned_for_as_told() -> None:
    told = BudgetSchedule(0.5, steps=20)
    assert fractions(told, 20, known=False) == fractions(told, 20)
    assert fractions(told, 30, known=False)[:20] == fractions(told, 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.0}, "budget"),
        ({"budget": 1.1}, "budget"),
        ({"budget": 0.5, "warmup": 2.0}, "warmup"),
        ({"budget": 0.5, "every": 0}, "every"),
        ({"budget": 0.5, "least_warmup": 0}, "least_warmup"),
        ({"budget": 0.5, "steps": 0}, "steps"),
    ],
)
def test_bad_budgets(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BudgetSchedule(**settings)


@pytest.mark.parametrize("budget", [*PRESETS, 0.42])
def test_a_plan_runs_and_costs_its_budget(
    model: nn.Module, make_steps: Callable[..., Any], budget: float | str
) -> None:
    plan = tokenprune.plan(model, budget)
    with tokenprune.apply(model, plan) as handle:
        outputs = list(make_steps(model, images=2, steps=20))
        share = handle.report().tokens_ratio
    assert all(output.isfinite().all() for output in outputs)
    assert share == pytest.approx(PRESETS.get(str(budget), budget), abs=0.06)  # of 12 tokens


def test_a_plan_is_its_three_parts(model: nn.Module, make_steps: Callable[..., Any]) -> None:
    steps = make_steps(model)
    policy, schedule, reuse = CATPolicy(0.5, 2, num_clusters=3), WarmupSchedule(0.4, 3), Taylor(1)
    with tokenprune.apply(model, policy, schedule=schedule, reuse=reuse):
        apart = list(steps)
    with tokenprune.apply(model, Plan(policy, schedule, reuse)):
        together = list(steps)
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


def test_plans_are_refused_beside_a_schedule_or_a_reuse(model: nn.Module) -> None:
    plan = tokenprune.plan(model)
    for other in ({"schedule": WarmupSchedule(0.3, 8)}, {"reuse": Hold()}, {"corrector": Corrector()}):
        with pytest.raises(TypeError, match="expected none beside a Plan"):
            tokenprune.apply(model, plan, **other)
    tokenprune.apply(model, plan).remove()


def test_a_cost_in_other_words(model: nn.Module) -> None:
    assert tokenprune.plan(model, 0.25) == tokenprune.plan(model, macs=0.25) == tokenprune.plan(model, speedup=4)
    for costs in ({"macs": 0.5, "speedup": 2.0}, {"budget": 0.4, "macs": 0.5}, {"budget": "fast", "speedup": 2.0}):
        with pytest.raises(ValueError, match="expected one of budget, macs and speedup"):
            tokenprune.plan(model, **costs)
    with pytest.raises(ValueError, match=r"speedup: expected a number of at least 1, got 0\.5"):
        tokenprune.plan(model, speedup=0.5)
    with pytest.raises(ValueError, match=r"budget: expected a share"):
        tokenprune.plan(model, macs=1.5)
    for name in ("macs", "speedup"):
        with pytest.raises(TypeError, match=f"plan: {name}: expected a number"):
            tokenprune.plan(model, **{name: "2"})


@pytest.mark.parametrize("macs", [1.0, 0.5, 0.36, 0.1])
def test_the_share_of_operations_is_kept(model: nn.Module, make_steps: Callable[..., Any], macs: float) -> None:
    with tokenprune.apply(model, tokenprune.plan(model, macs=macs)) as handle:
        outputs = list(make_steps(model, steps=20))
        report = handle.report()
    assert report.mac_ratio == report.tokens_ratio == int(macs * 20) / 20
    assert all(output.isfinite().all() for output in outputs)


def test_a_plan_without_skips_computes_tokens_at_every_step(model: nn.Module, make_steps: Callable[..., Any]) -> None:
    with tokenprune.apply(model, tokenprune.plan(model, 0.5, skips=False)) as handle:
        list(make_steps(model, steps=20))
        assert min(step.tokens for step in handle.report().steps) > 0


def test_bad_plans(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="quality, balanced, fast"):
        tokenprune.plan(model, "fastest")
    with pytest.raises(ValueError, match=r"budget: expected a share .* got 1\.5"):
        tokenprune.plan(model, 1.5)
    with pytest.raises(UnknownModelError, match="no adapter describes"):
        tokenprune.plan(nn.Linear(2, 2))
    with pytest.raises(UnknownModelError, match="expected a transformer"):
        tokenprune.plan("shapes-sd3")
