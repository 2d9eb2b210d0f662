"""The examples of docs/configuration-files.md, and what it lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

import tokenprune
from tokenprune import BudgetSchedule, CATPolicy, Plan, Taylor
from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.configurations.files import read_configurations
from tokenprune.bench.configurations.suites import WITHOUT_BUDGET, fewer_steps
from tokenprune.bench.subjects.prompts import DATA_SETS
from tokenprune.plans.presets import best_plan

PAGE = (Path(__file__).parents[2] / "docs" / "configuration-files.md").read_text()


def test_the_examples_are_read(sd3: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan_file, configurations = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    Path("plan.toml").write_text(plan_file)
    Path("mine.toml").write_text(configurations)
    exec(code, {"model": sd3})
    plan = Plan(CATPolicy(alpha=0.3), BudgetSchedule(0.5), Taylor(order=1, keys=True))
    assert tokenprune.load_plan("plan.yaml") == plan
    assert read_configurations(Path("mine.toml"), 28) == [
        *fewer_steps(28),
        Configuration("CAT with a linear forecast", Plan(CATPolicy(), None, Taylor())),
        Configuration("balanced, 20 steps", best_plan(0.5), 20),
        Configuration("mine", plan, source="somebody's paper"),
    ]


def test_everything_is_listed() -> None:
    for name, data_set in DATA_SETS.items():
        assert re.search(rf"`--prompts-from {name}` \| .*`{data_set.path}`", PAGE)
    (budget,) = re.findall(r"^\| `--budget.*$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", budget)) - {"budget"} == set(WITHOUT_BUDGET)
