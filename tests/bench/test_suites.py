"""Suites keep to their budget, and every plan of theirs runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tokenprune
from tokenprune import SequentialPolicy
from tokenprune.bench.configurations.suites import SUITES, WITHOUT_BUDGET, described, make
from tokenprune.bench.tables import policies
from tokenprune.bench.tables.cells import marks
from tokenprune.policies import ALL
from tokenprune.schedule import rehearsed

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
        shares = [schedule.fraction(step) for step in rehearsed(schedule, steps)]
        assert shares[0] == 1
        assert sum(shares) / steps == pytest.approx(budget, abs=max(0.02, 1.0 / steps)), configuration.name


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


def test_policies_say_what_suites_measure() -> None:
    names = [variant.name for _, variant in described()]
    assert len(set(names)) == len(names) > len(ALL) / 2
    for policy, variant in described():
        assert set(variant.suites) <= set(SUITES)
        made = variant.make(policy, alpha=0.5, warmup_steps=3)
        assert isinstance(made, policy)
        assert (made.alpha, made.warmup_steps) == (0.5, 3)
        assert eval(variant.code(policy), vars(tokenprune)) == variant.make(policy)
        for name in variant.suites:
            found = {configuration.name for configuration in make(name, 0.5, 28)}
            wanted = {f"{variant.name}, {steps} full steps" for steps in variant.suites[name]}
            assert wanted <= found or variant.name in found
        for setting in variant.searched or {}:
            assert setting in {field.name for field in fields(policy)}


A_NEW_POLICY = """
from tokenprune import SequentialPolicy, policies
from tokenprune.policies.description import Description, Variant

class NewPolicy(SequentialPolicy):
    variants = (Variant("new", "ours", suites={"ablations": (8,), "rivals": (8,)}, searched={}),)
    description = Description("something new", "nowhere", "nothing", variants=variants)

policies.ALL += (NewPolicy,)  # what a line in tokenprune/policies/__init__.py does
from tokenprune.bench.configurations.suites import make
from tokenprune.bench.figures.strategies import STRATEGIES
from tokenprune.bench.studies.policy_costs import policies as costs
from tokenprune.bench.tables.policies import table
from tokenprune.bench.tuning.space import POLICIES

assert all("new, 8 full steps" in {c.name for c in make(s, 0.5, 28)} for s in ("ablations", "plane", "rivals"))
assert "new" in STRATEGIES
assert "new" in POLICIES
assert "NewPolicy()" in costs()
assert "| `NewPolicy` | something new | nowhere | nothing |  |" in table()
"""


def test_a_new_policy_is_measured_searched_drawn_and_told_of() -> None:
    ran = subprocess.run([sys.executable, "-c", A_NEW_POLICY], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_table_of_policies_in_docs_is_theirs() -> None:
    start, end = marks(policies.NAME)
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    assert page.split(start)[1].split(end)[0] == policies.table()


def test_a_policy_without_a_description_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequentialPolicy, "description", None)
    with pytest.raises(TypeError, match="SequentialPolicy: expected a description"):
        policies.table()
