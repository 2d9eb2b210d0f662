"""The template of a third party's package: copied, installed, and found by name, as its README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tokenprune
from tokenprune import Plan, Reuse, Schedule, SelectionPolicy
from tokenprune.bench.configurations.files import read_configurations
from tokenprune.cli.app import APP
from tokenprune.errors import UnknownModelError
from tokenprune.plans.data import find_part, names_of
from tokenprune.plans.files import mapping_of, plan_of
from tokenprune.policies.registry import find_policy, known_policies
from tokenprune.registry import find_adapter, known_models

ROOT = Path(tokenprune.__file__).parents[1]
TEMPLATE = ROOT / "docs" / "template"
README = (TEMPLATE / "README.md").read_text()
NAMES = ((SelectionPolicy, "drift"), (Schedule, "alternate"), (Reuse, "mean-drift"))


@dataclass(frozen=True)
class Installed:
    """A copy of the template, and the folder that it is installed in."""

    copy: Path
    site: Path

    def run(self, *command: str) -> str:
        """What a command prints, in the copy, with the package installed."""
        paths = os.pathsep.join(map(str, (self.site, ROOT, ROOT / "adapters")))
        environment = {**os.environ, "PYTHONPATH": paths}
        ran = subprocess.run(command, cwd=self.copy, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


def copied(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    return Path(shutil.copytree(TEMPLATE, folder / "mine", ignore=ignored))


def install(copy: Path, site: Path) -> Installed:
    """Install a package as pip does, from its folder alone."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(copy)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return Installed(copy, site)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("template")
    return install(copied(folder), folder / "site")


@pytest.fixture
def known(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """The package is on the path for one test, and its folder the working directory."""
    monkeypatch.syspath_prepend(installed.site)
    monkeypatch.chdir(installed.copy)
    return installed


def test_nothing_of_it_is_known_before() -> None:
    assert "drift" not in known_policies()
    with pytest.raises(ValueError, match=r"policy: .*'drift' of the group 'tokenprune\.policies'"):
        find_policy("drift")
    for kind, name in NAMES:
        assert name not in names_of(kind)


def test_its_own_tests_pass(installed: Installed) -> None:
    printed = installed.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert "5 passed" in printed


def test_all_four_are_found_by_name(known: Installed) -> None:
    from tokenprune_mine.model import example

    assert "tokenprune_mine.model.MyTransformer" in known_models()
    for kind, name in NAMES:
        assert issubclass(find_part(kind, name, "name"), kind)
    model, inputs = example()
    assert find_adapter(model)(model).exit == "final"
    plan = tokenprune.load_plan("plan.toml")
    with tokenprune.apply(model, plan, discover=False) as handle, torch.no_grad():
        for time in torch.linspace(1, 0.1, 4):
            model(inputs["latents"], time.expand(2))
        assert [step.tokens for step in handle.report().steps] == [96, 96, 24, 96]


def test_plans_are_written_with_the_names(known: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tokenprune.load_plan("plan.toml")
    written = mapping_of(plan)
    assert [written[part]["name"] for part in ("policy", "schedule", "reuse")] == [name for _, name in NAMES]
    assert plan_of(written) == plan
    monkeypatch.undo()  # registered no more
    assert mapping_of(Plan(plan.policy))["policy"]["name"] == "tokenprune_mine.policy:DriftPolicy"


def test_configuration_files_name_them(known: Installed) -> None:
    found = {each.name: each for each in read_configurations(Path("bench.toml"), 8)}
    assert {"mine", "my policy alone"} <= set(found)
    assert type(found["mine"].plan.schedule).__name__ == "Alternate"


@pytest.mark.parametrize("command", ["inspect", "macs"])
def test_commands_of_the_readme_name_them(known: Installed, command: str) -> None:
    (line,) = re.findall(rf"^tokenprune ({command} .*)$", README, re.M)
    result = CliRunner(env={"COLUMNS": "120"}).invoke(APP, shlex.split(line))
    assert result.exit_code == 0, result.stderr
    assert "4 x 96" in result.stdout or "2 x 96, 1 x 24" in result.stdout
    assert "MyTransformer" in result.stdout


def test_a_figure_with_its_policy(known: Installed, tmp_path: Path) -> None:
    (line,) = re.findall(r"^tokenprune (figures .*)$", README, re.M)
    few = ["--steps", "5", "--warmup-steps", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(APP, [*shlex.split(line), *few])
    assert result.exit_code == 0, result.stderr
    assert "DriftPolicy" in (tmp_path / "figures.json").read_text()


def test_it_can_be_renamed_as_the_readme_says(tmp_path: Path) -> None:
    copy = copied(tmp_path)
    (line,) = re.findall(r"^(grep -rl .*)$", README, re.M)
    subprocess.run(["bash", "-c", line], cwd=copy, check=True)
    assert not [path for path in copy.rglob("*.*") if path.is_file() and "tokenprune_mine" in path.read_text()]
    renamed = install(copy, tmp_path / "site")
    assert renamed.run(sys.executable, "-c", "import my_name.policy as p; print(p.DriftPolicy())").startswith("Drift")


def test_without_it_the_model_is_unknown(known: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenprune_mine.model import MyTransformer

    monkeypatch.undo()
    with pytest.raises(UnknownModelError, match="no adapter describes"):
        tokenprune.apply(MyTransformer(), tokenprune.CATPolicy(), discover=False)
