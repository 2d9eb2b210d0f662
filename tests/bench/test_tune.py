"""The search of the plane for a plan within a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial, TrialState
from small import make_sd3

from tokenprune import BudgetSchedule, CATPolicy, ConfigurationError, Plan, SequentialPolicy
from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.configurations.suites import plane
from tokenprune.bench.measuring.fidelity import psnr_of_each
from tokenprune.bench.measuring.measure import Task, draw, draw_all
from tokenprune.bench.tuning import search as tuning
from tokenprune.bench.tuning.held_out import TUNED, HeldOutRow, compare, contenders, judge
from tokenprune.bench.tuning.search import Found, Tried, open_study, probe, search
from tokenprune.bench.tuning.space import OURS, PRESETS, Costs, Space, fractions

STEPS, BUDGET = 5, 0.6
SPACE = Space(BUDGET, Costs(STEPS))
HELD_OUT = ("a green cross", "a white ring")


@pytest.fixture(scope="module")
def small() -> Any:
    return make_sd3()


@pytest.fixture
def task() -> Task:
    return Task(("a red circle", "a blue star"), STEPS, 4.0, 1, {})


@pytest.fixture
def run(small: Any, task: Task, tmp_path: Path) -> Callable[..., Found]:
    """Search three plans beside the presets, with a journal of that name."""

    def run(name: str = "j", seed: int = 0, space: Space = SPACE, trials: int = 3, **options: Any) -> Found:
        return search(small, task, space, open_study(tmp_path / name, {"seed": seed}), trials, seed, **options)

    return run


def trials(path: Path) -> list[Any]:
    """Parameters and values of a journal's ended trials."""
    ended = open_study(path, {"seed": 0}).get_trials(states=tuning.ENDED)
    return sorted((str(sorted(trial.params.items(), key=str)), trial.value or 0.0) for trial in ended)


@pytest.mark.parametrize("budget", [0.35, 0.5])
def test_presets_are_those_of_the_suites(budget: float) -> None:
    space = Space(budget, Costs(28))
    suites = {configuration.name: configuration.plan for configuration in plane(budget, 28)}
    found = {name: space.plan(FixedTrial(params)) for name, params in space.presets().items()}
    assert set(found) == set(PRESETS)
    for name, plan in found.items():
        wanted = suites[name]
        assert plan is not None
        assert wanted is not None
        assert (plan.policy, plan.reuse) == (wanted.policy, wanted.reuse)
        if budget * 28 == int(budget * 28) or ("full steps evenly" not in name and "after" not in name):
            assert fractions(plan.schedule, 28) == fractions(wanted.schedule, 28)


@pytest.mark.parametrize("costs", [Costs(14), Costs(9, 0.1, 0.85)], ids=["tokens", "macs"])
def test_every_suggestion_keeps_to_the_budget(costs: Costs) -> None:
    space = Space(0.5, costs)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    plans = [space.plan(study.ask()) for _ in range(80)]
    schedules = [plan.schedule for plan in plans if plan is not None]
    assert len(schedules) > 50
    shares = [costs.share(schedule) for schedule in schedules]
    assert max(shares) <= 0.5 + 1e-6
    exact = [share for schedule, share in zip(schedules, shares, strict=True) if not schedule.skips]
    assert len(exact) > 25
    assert min(exact) > 0.48  # full steps come one by one
    assert all(fractions(schedule, costs.steps)[0] == 1 for schedule in schedules)


def test_presets_that_exceed_the_budget_are_left_out() -> None:
    assert "CAT, 8 full steps" in Space(0.5, Costs(28)).presets()
    assert "CAT, 8 full steps" not in Space(0.5, Costs(16)).presets()
    assert Space(0.05, Costs(4)).presets() == {}


def test_costs_foretell_what_a_report_says(small: Any, task: Task) -> None:
    plan = Plan(SequentialPolicy(), BudgetSchedule(0.55, steps=STEPS))
    drawn = draw(small, Configuration("", plan), task)
    macs, tokens = (probe(small, task, cost) for cost in ("macs", "tokens"))
    assert macs.steps == tokens.steps == STEPS
    assert plan.schedule is not None
    assert macs.share(plan.schedule) == pytest.approx(drawn.mac_ratio, abs=0.01)  # a step computes whole tokens
    assert macs.share(plan.schedule) > tokens.share(plan.schedule) + 0.02


def test_the_best_plan_is_never_worse_than_a_preset(small: Any, task: Task, run: Callable[..., Found]) -> None:
    found = run()
    dense = draw_all(small, STEPS, task)
    assert np.array_equal(found.dense, dense)
    assert {preset.name for preset in found.presets} == set(SPACE.presets())
    drawn = {tried.name: draw(small, Configuration("", tried.plan), task) for tried in (found.best, *found.presets)}
    psnr = {name: float(np.mean(psnr_of_each(each.pictures, dense))) for name, each in drawn.items()}
    assert psnr[found.best.name] == pytest.approx(np.mean(found.best.psnr))
    assert psnr[found.best.name] == max(psnr.values())
    assert max(each.tokens_ratio or 1.0 for each in drawn.values()) <= BUDGET
    assert found.trials == 3


def test_the_same_seed_gives_the_same_trials(tmp_path: Path, run: Callable[..., Found]) -> None:
    assert run("a").best == run("b").best
    run("c", seed=1)
    journals = [trials_of(tmp_path / name) for name in "abc"]
    assert journals[0] == journals[1] != journals[2]


def trials_of(path: Path) -> list[Any]:
    study = open_study(path, {"seed": 1 if path.name == "c" else 0})
    return [(trial.params, trial.value, trial.state) for trial in study.trials]


def test_a_killed_run_is_taken_up_where_it_ended(
    tmp_path: Path, run: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("whole")
    drawn: list[Any] = []

    def killed(trial: Any, *rest: Any, after: int) -> float:
        if len(drawn) == after:
            raise KeyboardInterrupt
        drawn.append(trial.params)
        return original(trial, *rest)

    original = tuning._draw
    for after in (1, 4):  # a preset, then a plan of the search
        monkeypatch.setattr(tuning, "_draw", lambda *given, after=after: killed(*given, after=after))
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    monkeypatch.setattr(tuning, "_draw", lambda *given: killed(*given, after=-1))
    found = run("killed")
    assert len(drawn) == len(SPACE.presets()) + 3 - repeated(tmp_path / "whole")
    assert (found.best.plan, found.best.psnr) == (whole.best.plan, whole.best.psnr)
    assert trials(tmp_path / "killed") == trials(tmp_path / "whole")
    assert run("killed").trials == 3
    assert len(drawn) == len(SPACE.presets()) + 3 - repeated(tmp_path / "whole")


def repeated(path: Path) -> int:
    """Trials that were not drawn: over the budget, or with another's parameters."""
    ended = open_study(path, {"seed": 0}).get_trials(states=tuning.ENDED)
    within = [str(trial.params) for trial in ended if "over" not in trial.user_attrs]
    return len(within) - len(set(within))


def test_poor_plans_are_stopped_early_but_presets_are_not(
    run: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (80 - 0.01 * place for place in range(1000))
    monkeypatch.setattr(tuning, "psnr_of_each", lambda *_: [float(next(values))])
    monkeypatch.setattr(tuning, "FEWEST", 1)
    found = run(trials=4)
    assert found.stopped >= 1
    assert len(found.presets) == len(SPACE.presets())
    assert found.best.name == found.presets[0].name


def test_no_time_leaves_the_presets(run: Callable[..., Found]) -> None:
    found = run(timeout=0.0)
    assert (len(found.presets), found.trials) == (len(SPACE.presets()), 0)


def test_a_plan_that_fails_is_told_and_passed_over(run: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(SPACE.presets()))
    original = tuning._draw

    def failing(trial: Any, *rest: Any) -> float:
        if trial.user_attrs.get("preset") == name:
            raise RuntimeError("no\nmemory")
        return original(trial, *rest)

    monkeypatch.setattr(tuning, "_draw", failing)
    found = run(trials=0)
    assert found.failed == {name: "RuntimeError: no memory"}
    assert len(found.presets) == len(SPACE.presets()) - 1
    monkeypatch.setattr(tuning, "_draw", lambda *_: 1 / 0)
    with pytest.raises(ConfigurationError, match="expected a plan that can be drawn, got none: ZeroDivisionError"):
        run("other", trials=1)


def test_a_budget_for_no_plan_is_refused(run: Callable[..., Found]) -> None:
    with pytest.raises(ConfigurationError, match=r"no schedule keeps to a budget of 0\.05"):
        run(space=Space(0.05, Costs(STEPS)), trials=0)


def test_a_journal_of_another_run_or_of_none_is_refused(tmp_path: Path) -> None:
    open_study(tmp_path / "j", {"budget": 0.5, "steps": 5})
    open_study(tmp_path / "j", {"budget": 0.5, "steps": 5})
    with pytest.raises(ConfigurationError, match=r"j: was tuned with another budget; delete it"):
        open_study(tmp_path / "j", {"budget": 0.4, "steps": 5})
    (tmp_path / "text").write_text("schedule\nreuse\n")
    for path in (tmp_path / "text", tmp_path / "text" / "j"):
        with pytest.raises(ConfigurationError, match="expected a file that can be written, or the journal of"):
            open_study(path, {})


def test_a_killed_trial_is_given_up(tmp_path: Path) -> None:
    open_study(tmp_path / "j", {}).ask()
    assert [trial.state for trial in open_study(tmp_path / "j", {}).trials] == [TrialState.FAIL]


def test_the_comparison_draws_the_held_out_prompts(small: Any, task: Task, run: Callable[..., Found]) -> None:
    found = run(trials=1)
    held_out = replace(task, prompts=HELD_OUT)
    rows = compare(small, found, task, held_out)
    assert rows[0].name == TUNED
    assert rows[-1].name == "plain, 3 steps"
    assert len(rows) == len(contenders(found)) + 1
    dense = draw_all(small, STEPS, held_out)
    drawn = draw(small, Configuration("", found.best.plan), held_out)
    assert rows[0].held_out == psnr_of_each(drawn.pictures, dense)
    assert rows[0].tuning == found.best.psnr
    fewer = psnr_of_each(draw_all(small, 3, task), found.dense)
    assert (rows[-1].tuning, rows[-1].tokens_ratio) == (fewer, 0.6)


PLAN = Plan(CATPolicy())
NAMES = ("trial 9", "CAT", OURS)


@pytest.mark.parametrize(
    ("tuned", "cat", "ours", "rival", "gain", "said"),
    [
        ([30.0, 31.0], [28.0, 29.5], [20.0, 20.0], "CAT", 1.75, "1.75 ± 3.18 dB above the best preset, 'CAT'."),
        ([30.0, 31.0], [30.0, 29.0], [20.0, 20.0], "CAT", 1.0, "That may be chance"),
        ([30.0, 31.1], [28.0, 29.0], [20.0, 20.0], "CAT", 2.05, "2.05 ± 0.64 dB above the best preset, 'CAT'."),
        ([30.0, 31.0], [20.0, 20.0], [31.0, 33.0], OURS, -1.5, "WORSE on held-out prompts"),
        ([30.0], [20.0], [10.0], "CAT", 10, "10.00 dB above the best preset, 'CAT'. That may be chance: it is a"),
        ([None, 30.0], [30.0, 30.0], [20.0, 20.0], "CAT", 9.065, "That may be chance"),
    ],
)
def test_the_verdict_is_that_of_the_held_out_prompts(
    tuned: list[Any], cat: list[Any], ours: list[Any], rival: str, gain: float, said: str
) -> None:
    tried = [Tried(name, PLAN, [40.0], 0.5, 0.5) for name in NAMES]
    found = Found(0.5, tried[0], tried[1:], 1, 0, {}, np.zeros((1, 1, 1, 1), np.float32))
    rows = [
        HeldOutRow(name, 0.5, 0.5, [40.0], psnr)
        for name, psnr in zip((TUNED, *NAMES[1:]), (tuned, cat, ours), strict=True)
    ]
    verdict = judge(found, rows)
    assert verdict.rival is not None
    assert (verdict.rival.name, verdict.gain) == (rival, pytest.approx(gain, abs=1e-3))
    assert said in verdict.text


def test_a_preset_that_is_the_best_is_called_one() -> None:
    tried = Tried(OURS, PLAN, [40.0], 0.5, 0.5)
    verdict = judge(
        Found(0.5, tried, [replace(tried)], 0, 0, {}, np.zeros((1, 1, 1, 1), np.float32)),
        [HeldOutRow(TUNED, 0.5, 0.5, [40.0], [39.0])],
    )
    assert verdict.rival is None
    assert verdict.text.startswith("No plan was better than the preset 'tokenprune.plan'")
