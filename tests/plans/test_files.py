"""Plans as files: everything the package exports goes there and back; what is malformed is named."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
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
    ClusterCorrection,
    ConfigurationError,
    Corrector,
    ErrorControlledPolicy,
    Hold,
    LevelSchedule,
    ListSchedule,
    MixturePolicy,
    NoisePolicy,
    Plan,
    RefreshSchedule,
    RegionPolicy,
    Reuse,
    Schedule,
    ScorePolicy,
    SelectionPolicy,
    SequentialPolicy,
    Taylor,
    WarmupSchedule,
    load_plan,
    save_plan,
)
from tokenprune.plans.data import names_of
from tokenprune.plans.files import mapping_of, plan_of
from tokenprune.plans.presets import PRESETS, best_plan

EXPORTED = {name: value for name in tokenprune.__all__ if inspect.isclass(value := getattr(tokenprune, name))}
NEEDED: dict[str, dict[str, Any]] = {
    "MixturePolicy": {"parts": ((CATPolicy(num_clusters=5), 1), (SequentialPolicy(), 0.5))},
    "RegionPolicy": {"inner": NoisePolicy(0.4), "mask": torch.eye(4, dtype=torch.bool)},
    "BudgetSchedule": {"budget": 0.4},
    "EvenSchedule": {"budget": 0.4, "first": 0.25},
    "FixedSchedule": {"full": (0, 2, 3), "steps": 5},
    "PlacedSchedule": {"budget": 0.4},
    "HeldText": {"schedule": WarmupSchedule(0.25, 3), "every": None},
    "LevelSchedule": {"points": ((1.0, 1.0), (0.3, 0.5), (0.0, 0.25))},
    "ListSchedule": {"fractions": (1.0, 0.0, 0.25)},
    "RefreshSchedule": {"every": 3},
    "WarmupSchedule": {"alpha": 0.25, "warmup_steps": 3},
}
KINDS = (SelectionPolicy, Schedule, Reuse, Corrector)


def concrete(kind: type) -> list[str]:
    return [name for name, value in EXPORTED.items() if issubclass(value, kind) and not inspect.isabstract(value)]


def example(name: str) -> Any:
    return EXPORTED[name](**NEEDED.get(name, {}))


def plan_with(part: Any) -> Plan:
    """A plan with the part in its place; all others are unlike their defaults."""
    parts = {
        "policy": NoisePolicy(0.6),
        "schedule": RefreshSchedule(4),
        "reuse": Taylor(2),
        "corrector": Corrector(7.0),
    }
    place = next(name for name, kind in zip(parts, KINDS, strict=True) if isinstance(part, kind))
    return Plan(**{**parts, place: part})


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_names_is_what_the_package_exports(kind: type) -> None:
    assert sorted(names_of(kind)) == sorted(concrete(kind))


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
@pytest.mark.parametrize("name", [name for kind in KINDS for name in concrete(kind) if name != "RegionPolicy"])
def test_everything_goes_there_and_back(name: str, suffix: str, tmp_path: Path) -> None:
    plan = plan_with(example(name))
    save_plan(plan, tmp_path / "new" / f"plan.{suffix}", notes={"found": "by hand"})
    assert load_plan(tmp_path / "new" / f"plan.{suffix}") == plan


def test_masks_go_there_and_back(tmp_path: Path) -> None:
    save_plan(plan_with(example("RegionPolicy")), tmp_path / "plan.json")
    found = load_plan(tmp_path / "plan.json").policy
    assert isinstance(found, RegionPolicy)
    assert found.mask is not None
    assert torch.equal(found.mask, torch.eye(4, dtype=torch.bool))
    assert (found.exclude, found.inner, found.alpha) == (None, NoisePolicy(0.4), 0.4)


def test_none_is_written_and_nested_parts_keep_their_settings(tmp_path: Path) -> None:
    mixture = MixturePolicy(parts=((MixturePolicy(parts=((CATPolicy.published(), 2),)), 1), (NoisePolicy(), 3)))
    plan = Plan(mixture, BudgetSchedule(0.5, every=None), ClusterCorrection(Taylor(2, keys=0.5), 7))
    save_plan(plan, tmp_path / "plan.yaml")
    assert load_plan(tmp_path / "plan.yaml") == plan
    assert mapping_of(plan)["schedule"]["every"] is None


@given(
    policy=st.builds(
        CATPolicy,
        alpha=st.floats(0.01, 1),
        warmup_steps=st.integers(1, 50),
        decay=st.floats(0, 0.99),
        quota_weights=st.lists(st.floats(0, 9), min_size=1, max_size=6).map(tuple),
        feature_scale=st.none() | st.floats(-2, 2),
        balance_top=st.booleans(),
    ),
    schedule=st.none()
    | st.builds(LevelSchedule, points=st.floats(0, 1).map(lambda low: ((1.0, 1.0), (0.5, 0.5), (0.0, low))))
    | st.builds(ListSchedule, fractions=st.lists(st.floats(0, 1), max_size=9).map(lambda rest: (1.0, *rest)))
    | st.builds(WarmupSchedule, alpha=st.floats(0.01, 1), warmup_steps=st.integers(1, 9)),
    reuse=st.builds(Taylor, order=st.sampled_from([1, 2]), damped=st.booleans()) | st.just(Hold()),
)
def test_any_settings_survive_text(policy: CATPolicy, schedule: Schedule | None, reuse: Reuse) -> None:
    plan = Plan(policy, schedule, reuse)
    assert plan_of(json.loads(json.dumps(mapping_of(plan)))) == plan


def test_toml_is_read_and_missing_settings_have_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('policy = { name = "CATPolicy", alpha = 1 }\n[reuse]\nname = "Taylor"\nkeys = true\n')
    found = load_plan(path)
    assert found == Plan(CATPolicy(alpha=1.0), None, Taylor(keys=True))
    assert isinstance(found.policy.alpha, float)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_and_budgets_stand_for_the_recommended_plan(name: str) -> None:
    assert plan_of({"plan": name}) == plan_of({"budget": PRESETS[name]}) == best_plan(PRESETS[name])


def test_a_loaded_plan_prunes(sd3: nn.Module, generate: Any, tmp_path: Path) -> None:
    save_plan(Plan(ErrorControlledPolicy(), WarmupSchedule(0.25, 3), Taylor(keys=True)), tmp_path / "plan.json")
    with tokenprune.apply(sd3, load_plan(str(tmp_path / "plan.json"))) as handle:
        generate(sd3)
        assert [step.tokens for step in handle.report().steps] == [24] * 3 + [6] * 3


OWN = """
from dataclasses import dataclass
from tokenprune import Hold, NoisePolicy, Schedule

@dataclass(frozen=True)
class Mine(NoisePolicy):
    extra: int = 1

@dataclass(frozen=True)
class Half(Schedule):
    first: float = 1.0

    def fraction(self, step):
        return self.first if step.index < 3 else 0.5

@dataclass(frozen=True)
class Kept(Hold):
    pass

class NoDataclass(Schedule):
    def fraction(self, step):
        return 1.0
"""


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_classes_of_ones_own_go_by_their_modules(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sd3: nn.Module, generate: Any
) -> None:
    """Found in the working directory, which is left off the path afterwards."""
    module = f"own_parts_{suffix}"
    (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    given = {
        "policy": {"name": f"{module}:Mine", "alpha": 0.25, "extra": 7},
        "schedule": {"name": f"{module}:Half"},
        "reuse": {"name": f"{module}:Kept"},
    }
    plan = plan_of(given)
    assert sys.path == before
    assert [type(part).__name__ for part in (plan.policy, plan.schedule, plan.reuse)] == ["Mine", "Half", "Kept"]
    assert (plan.policy.alpha, plan.policy.extra) == (0.25, 7)
    save_plan(plan, tmp_path / f"plan.{suffix}")
    assert load_plan(tmp_path / f"plan.{suffix}") == plan
    with tokenprune.apply(sd3, plan) as handle:
        generate(sd3)
        assert [step.tokens for step in handle.report().steps] == [24] * 3 + [12] * 3
    with pytest.raises(ConfigurationError, match=r"policy\.extra: expected a whole number, got 'x'"):
        plan_of({"policy": {"name": f"{module}:Mine", "extra": "x"}})
    with pytest.raises(
        ConfigurationError, match=r"schedule\.name: .*:NoDataclass: expected a class that can be made and"
    ):
        plan_of({"policy": {"name": "CATPolicy"}, "schedule": {"name": f"{module}:NoDataclass"}})


def test_what_nobody_registered_cannot_be_written(tmp_path: Path) -> None:
    class Own(Schedule):
        def fraction(self, step: tokenprune.Step) -> float:
            return 1.0

    @dataclasses.dataclass(frozen=True)
    class Ours(NoisePolicy):
        extra: int = 1

    for plan, named in ((Plan(NoisePolicy(), Own()), "Own"), (Plan(Ours()), "Ours")):
        with pytest.raises(
            ConfigurationError, match=f"{named}: expected one of .*, or a dataclass in a module of its own"
        ):
            save_plan(plan, tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "expected policy, schedule, reuse, corrector, or plan or budget alone; got nothing"),
        ({"plan": "best"}, "plan: expected a share or one of quality, balanced, fast, got 'best'"),
        ({"plan": 0.5}, "plan: expected text, got 0.5"),
        ({"budget": 1.5}, r"budget: expected a share of the operations in \(0, 1\], got 1.5"),
        ({"budget": "half"}, "budget: expected a number, got 'half'"),
        (
            {"budget": 0.5, "policy": {"name": "NoisePolicy"}},
            "expected policy, schedule, reuse, corrector; got unknown budget",
        ),
        ({"schedule": {"name": "BudgetSchedule", "budget": 0.5}}, "lacks policy"),
        ({"policy": "CATPolicy"}, "policy: expected the name of a SelectionPolicy and its settings, got 'CATPolicy'"),
        ({"policy": {"name": "CAT"}}, "policy.name: expected one of .*CATPolicy.*, or module.path:Class, got 'CAT'"),
        ({"policy": {"name": 3}}, "policy.name: expected one of .*, or module.path:Class, got 3"),
        ({"policy": {"name": "no_such:X"}}, "policy.name: no_such:X: ModuleNotFoundError: No module named 'no_such'"),
        ({"policy": {"name": "math:X"}}, "policy.name: math:X: AttributeError: module 'math' has no attribute 'X'"),
        ({"policy": {"name": ":X"}}, "policy.name: :X: ValueError: Empty module name"),
        (
            {"policy": {"name": "tokenprune:Taylor"}},
            "policy.name: tokenprune:Taylor: expected a class derived from SelectionPolicy, got <class",
        ),
        (
            {"policy": {"name": "tokenprune:SelectionPolicy"}},
            "policy.name: tokenprune:SelectionPolicy: expected a class that can be made and is a dataclass",
        ),
        ({"policy": {"name": "Taylor"}}, "policy.name: .*got 'Taylor'"),
        ({"policy": {"name": "CATPolicy", "clusters": 3}}, "policy: expected .*num_clusters.*; got unknown clusters"),
        ({"policy": {"name": "CATPolicy", "alpha": "0.3"}}, "policy.alpha: expected a number, got '0.3'"),
        ({"policy": {"name": "CATPolicy", "alpha": True}}, "policy.alpha: expected a number, got True"),
        ({"policy": {"name": "CATPolicy", "alpha": 2}}, r"policy.alpha: expected a fraction .* in \(0, 1\], got 2.0"),
        ({"policy": {"name": "CATPolicy", "seed": 1.5}}, "policy.seed: expected a whole number, got 1.5"),
        ({"policy": {"name": "CATPolicy", "balance_top": 1}}, "policy.balance_top: expected true or false, got 1"),
        ({"policy": {"name": "CATPolicy", "quota_weights": 0.2}}, "policy.quota_weights: expected a list, got 0.2"),
        (
            {"policy": {"name": "CATPolicy", "quota_weights": [2, "x"]}},
            r"policy.quota_weights\[1\]: expected a number, got 'x'",
        ),
        (
            {"policy": {"name": "RegionAdaptivePolicy", "metric": "max"}},
            "policy.metric: expected one of std, norm, got",
        ),
        ({"policy": {"name": "MixturePolicy", "parts": [[{"name": "X"}, 1]]}}, r"policy.parts\[0\]\[0\].name: .*'X'"),
        ({"policy": {"name": "MixturePolicy", "parts": [[1]]}}, r"policy.parts\[0\]: expected a list of 2, got \[1\]"),
        ({"policy": {"name": "RegionPolicy", "inner": {"name": "NoisePolicy"}, "mask": [[True], []]}}, "policy.mask: "),
        ({"policy": {"name": "NoisePolicy"}, "schedule": {"name": "RefreshSchedule"}}, "schedule: .*lacks every"),
        ({"policy": {"name": "NoisePolicy"}, "reuse": {"name": "Taylor", "order": 3}}, "reuse.order: expected 1 or 2"),
    ],
)
def test_what_is_wrong_is_named(mapping: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_of(mapping)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(mapping))
    with pytest.raises(ConfigurationError, match=rf"plan\.json: .*{message}"):
        load_plan(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plan.json", None, r"plan\.json: expected a readable json file, got: .*No such file"),
        ("plan.json", "{", r"plan\.json: expected a readable json file, got: Expecting"),
        ("plan.yaml", "a: [", r"plan\.yaml: expected a readable yaml file, got: while parsing"),
        ("plan.toml", "a = ", r"plan\.toml: expected a readable toml file, got: Invalid value"),
        ("plan.json", "[1]", r"plan\.json: expected names with values, got list"),
        ("plan.txt", "", r"plan\.txt: expected a file that ends in \.json, \.yaml, \.yml, \.toml, got '\.txt'"),
    ],
)
def test_files_that_cannot_be_read_are_named(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_plan(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_toml_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ends in \.json, \.yaml, \.yml to write, got '\.toml'"):
        save_plan(Plan(NoisePolicy()), tmp_path / "plan.toml")


def test_scored_policies_are_no_names() -> None:
    assert inspect.isabstract(ScorePolicy)
    with pytest.raises(ConfigurationError, match="got 'ScorePolicy'"):
        plan_of({"policy": {"name": "ScorePolicy"}})
