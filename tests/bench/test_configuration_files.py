"""Configurations from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenprune import BudgetSchedule, CATPolicy, ConfigurationError, Hold, NoisePolicy, Plan, Taylor, save_plan
from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.configurations.files import digest, read_configurations
from tokenprune.bench.configurations.suites import fewer_steps
from tokenprune.plans.presets import best_plan

TOML = """
[[configuration]]  # as published
name = "CAT"
source = "arXiv 2502.00433"
policy = { name = "CATPolicy", alpha = 0.25 }

[[configuration]]
name = "with a line"
steps = 20
policy = { name = "NoisePolicy" }
schedule = { name = "BudgetSchedule", budget = 0.5 }
reuse = { name = "Taylor", order = 1, keys = true }

[[configuration]]
name = "fast"
plan = "fast"

[[configuration]]
name = "thirteen"
steps = 13

[[configuration]]
name = "from a file"
plan_file = "plans/found.yaml"
"""
YAML = """
configuration:
- {name: CAT, source: arXiv 2502.00433, policy: {name: CATPolicy, alpha: 0.25}}
- name: with a line
  steps: 20
  policy: {name: NoisePolicy}
  schedule: {name: BudgetSchedule, budget: 0.5}
  reuse: {name: Taylor, order: 1, keys: true}
- {name: fast, budget: 0.35}
- {name: thirteen, steps: 13}
- {name: from a file, plan_file: plans/found.yaml}
"""
FOUND = Plan(CATPolicy.published())
WANTED = [
    Configuration("CAT", Plan(CATPolicy(alpha=0.25), None, Hold()), source="arXiv 2502.00433"),
    Configuration("with a line", Plan(NoisePolicy(), BudgetSchedule(0.5), Taylor(keys=True)), 20),
    Configuration("fast", best_plan(0.35)),
    Configuration("thirteen", steps=13),
    Configuration("from a file", FOUND),
]


@pytest.mark.parametrize(("name", "text"), [("own.toml", TOML), ("own.yaml", YAML)])
def test_a_file_gives_configurations_after_the_plain_model(name: str, text: str, tmp_path: Path) -> None:
    save_plan(FOUND, tmp_path / "plans" / "found.yaml")
    (tmp_path / name).write_text(text)
    assert read_configurations(tmp_path / name, 28) == [*fewer_steps(28), *WANTED]
    assert read_configurations(tmp_path / name, 28)[0] == plain(28)


def test_the_digest_is_that_of_what_is_said(tmp_path: Path) -> None:
    save_plan(FOUND, tmp_path / "plans" / "found.yaml")
    (tmp_path / "a.toml").write_text(TOML)
    (tmp_path / "b.yaml").write_text(YAML)
    (tmp_path / "c.toml").write_text(TOML.replace("0.25", "0.3"))
    first, same, other = (digest(read_configurations(tmp_path / name, 28)) for name in ("a.toml", "b.yaml", "c.toml"))
    assert first == same != other
    save_plan(Plan(CATPolicy()), tmp_path / "plans" / "found.yaml")
    assert digest(read_configurations(tmp_path / "a.toml", 28)) != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list 'configuration' and nothing else, got nothing"),
        ({"configurations": []}, "expected a list 'configuration' and nothing else, got configurations"),
        ({"configuration": []}, "expected a list 'configuration'"),
        ({"configuration": [{"name": "a"}], "model": "x"}, "nothing else, got configuration, model"),
        ({"configuration": ["CAT"]}, "configuration 1: expected names with values, got 'CAT'"),
        ({"configuration": [{"steps": 3}]}, "configuration 1: name: expected text, got None"),
        (
            {"configuration": [{"name": "a", "steps": 0}]},
            r"configuration 1 \(a\): steps: expected a whole number of at",
        ),
        ({"configuration": [{"name": "a", "steps": "3"}]}, "steps: expected a whole number of at least 1, got '3'"),
        ({"configuration": [{"name": "a", "source": 3}]}, "source: expected text, got 3"),
        ({"configuration": [{"name": "a"}, {"name": "a"}]}, "configuration 2: name: expected none of .*, a, got 'a'"),
        ({"configuration": [{"name": "plain, 14 steps", "steps": 3}]}, "configuration 1: name: expected none of"),
        (
            {"configuration": [{"name": "a", "policies": {}}]},
            r"configuration 1 \(a\): expected policy, schedule, reuse",
        ),
        ({"configuration": [{"name": "a", "policy": {"name": "X"}}]}, r"1 \(a\): policy.name: expected one of .*'X'"),
        ({"configuration": [{"name": "a", "budget": 2}]}, r"1 \(a\): budget: expected a share .*got 2.0"),
        ({"configuration": [{"name": "a", "plan_file": "b.json"}]}, r"1 \(a\): .*b\.json: expected a readable json"),
        (
            {"configuration": [{"name": "a", "plan_file": "b.json", "budget": 0.5}]},
            "plan_file: expected a path and no b",
        ),
        ({"configuration": [{"name": "a", "plan_file": 3}]}, "plan_file: expected a path"),
    ],
)
def test_what_is_wrong_is_named(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=rf"own\.json: .*{message}"):
        read_configurations(path, 28)
