"""What all commands have in common: one line and exit code 2 before anything is done, and a quick --help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Annotated

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import tokenprune
from tokenprune.bench import commands
from tokenprune.bench.commands import Command, check_extra, check_known, required
from tokenprune.cli.app import APP
from tokenprune.errors import ConfigurationError
from tokenprune.reports.outputs import check_output

ROOT = Path(tokenprune.__file__).parents[1]
COMMANDS = ("demo", "app", "generate", "bench", "figures", "macs", "inspect", "tune", "calibrate")
SERVERS = {"app"}
MODEL = {"inspect": ["shapes-sd3"]}
PROMPTS = {"generate": ["--prompts", "a.txt"]}
HEAVY = {
    "torch_geometric",
    "diffusers",
    "transformers",
    "matplotlib",
    "optuna",
    "accelerate",
    "torchmetrics",
    "datasets",
    "gradio",
}


def run(*words: str) -> Result:
    return CliRunner().invoke(APP, words)


@pytest.fixture
def nothing_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to run in, where nothing can be loaded."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    for place in (
        "embedded.load.Embedded.load",
        "bench.subjects.transformers.load",
        "bench.subjects.pipelines._placed",
    ):
        monkeypatch.setattr(f"tokenprune.{place}", loaded)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_commands_are_listed() -> None:
    found = run("--help")
    assert found.exit_code == 0
    assert re.findall(r"^│ ([a-z]+)  ", found.stdout, re.M) == list(COMMANDS)
    assert run().stdout.strip() == found.stdout.strip()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in SERVERS])
def test_every_command_that_ends_prints_json(command: str) -> None:
    assert "--json" in run(command, "--help").stdout


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"tokenprune {tokenprune.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepz", "3"], r"No such option:? '?--stepz"),  # older versions of click quote it
        (["--steps", "many"], "Invalid value for '--steps': "),
        (["--steps"], "Option '--steps' requires an argument"),
        (["one", "two"], "Got unexpected extra argument"),
    ],
)
def test_options_that_cannot_be_read_end_in_one_line(
    command: str, words: list[str], message: str, refused: Callable[..., None], nothing_done: Path
) -> None:
    result = run(command, *(words if words[0] == "one" else MODEL.get(command, []) + words))
    refused(command, result, "")
    assert re.match(f"tokenprune {command}: {message}", result.stderr)


def test_a_missing_argument_and_a_missing_command_end_in_one_line(refused: Callable[..., None]) -> None:
    refused("inspect", run("inspect"), "Missing argument 'MODEL'")
    result = run("inspekt")
    assert result.exit_code == 2
    assert result.stderr == "tokenprune: No such command 'inspekt'. Did you mean 'inspect'?\n"


def test_the_line_is_all_there_is_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "tokenprune", "demo", "--steps", "0"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert re.fullmatch(r"tokenprune demo: Invalid value for '--steps': [^\n]+\n", found.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_extra_ends_the_command_before_anything_is_done(
    command: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None], nothing_done: Path
) -> None:
    """As after `pip install '.[diffusers]'`."""
    absent = {"gradio", "matplotlib", "optuna", "torchmetrics"}
    monkeypatch.setattr(commands, "is_installed", lambda name: name not in absent)
    extra = commands.EXTRAS.get(command, "cli")
    names = ", ".join(sorted(absent & set(required(extra))))
    message = (
        f"the extra '{extra}' is needed, of which {names} are not installed: pip install 'tokenprune-dit[{extra}]'"
    )
    refused(command, run(command, *MODEL.get(command, [])), message)
    assert not list(nothing_done.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_there_without_extras(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "is_installed", lambda _: False)
    assert run(command, "--help").exit_code == 0


def test_an_extra_brings_what_the_project_file_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        extra: {re.split(r"[<>=\[ ]", text)[0] for text in texts}
        for extra, texts in project["optional-dependencies"].items()
    }
    cli = (extras["cli"] | extras["diffusers"] | extras["viewer"]) - {"tokenprune-dit"}
    assert set(required("tune")) - {"scipy"} == (cli | {"optuna"}) - {"scipy"}
    assert set(required("cli")) < set(required("tune"))
    check_extra("test-core")
    with pytest.raises(
        ConfigurationError, match=r"of which torch-scatter is not installed: pip install 'tokenprune-dit"
    ):
        check_extra("scatter")


def test_a_package_that_is_only_there_as_source_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(_: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(commands, "requires", requires)
    with pytest.raises(
        ConfigurationError, match="tokenprune-dit is not installed, only its source is there: pip install"
    ):
        check_extra("cli")


OUTPUTS = [
    ("demo", "out", "a.txt/panel.png"),
    ("generate", "out", "a.txt/pictures"),
    ("generate", "out", "a.txt"),
    ("figures", "out", "a.txt/figures"),
    ("figures", "out", "a.txt"),
    ("tune", "out", "a.txt/plan.yaml"),
    ("bench", "out", "a.txt/r.json"),
    ("bench", "out", "folder"),
    ("bench", "plot", "a.txt/plot.png"),
    ("bench", "markdown", "a.txt/new/table.md"),
]


@pytest.mark.parametrize(("command", "option", "path"), OUTPUTS)
def test_an_output_that_cannot_be_written_ends_the_command_before_anything_is_done(
    command: str, option: str, path: str, refused: Callable[..., None], nothing_done: Path
) -> None:
    (nothing_done / "a.txt").write_text("a red circle\n")
    (nothing_done / "folder").mkdir()
    result = run(command, *PROMPTS.get(command, []), f"--{option}", path)
    refused(command, result, f"{option}: expected a file that can be written, got {path}")
    assert sorted(each.name for each in nothing_done.rglob("*")) == ["a.txt", "folder"]


def test_an_output_is_checked_without_a_trace(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("old")
    for path in (there, tmp_path / "new.json", tmp_path / "new" / "folders" / "r.json"):
        check_output("out", path, ".json", ".yaml")
    assert list(tmp_path.iterdir()) == [there]
    assert there.read_text() == "old"
    with pytest.raises(ConfigurationError, match=r"out: expected a file that ends in \.json, \.yaml, got r\.txt"):
        check_output("out", Path("r.txt"), ".json", ".yaml")
    with pytest.raises(ConfigurationError, match=r"got /proc/r\.json: "):
        check_output("out", Path("/proc/r.json"))
    there.chmod(0o000)
    check_output("out", tmp_path / "there" / "r.json")


def test_a_known_value_is_let_through() -> None:
    check_known("model", ["a", "b"], {"a": 1, "b": 2})
    with pytest.raises(ConfigurationError, match="model: expected one of a, b, got 'c'"):
        check_known("model", ["a", "c"], {"a": 1, "b": 2})


def test_a_command_of_a_module_refuses_like_the_others() -> None:
    command = [sys.executable, "-m", "tokenprune.bench.tables.pareto", "nowhere.json", "plot.jpg"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == (
        "python -m tokenprune.bench.tables.pareto: picture: expected a file that ends in .png, got plot.jpg\n"
    )


def test_errors_that_are_no_refusals_are_shown_whole() -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    def fail(kind: Annotated[str, typer.Option()] = "value") -> None:
        raise {"value": ValueError("a fault"), "refusal": ConfigurationError("no\nsuch thing")}[kind]

    app.command(cls=Command)(fail)
    assert isinstance(CliRunner().invoke(app, []).exception, ValueError)
    refused = CliRunner().invoke(app, ["--kind", "refusal"])
    assert (refused.exit_code, refused.stderr) == (2, "fail: no such thing\n")


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_that_takes_long(words: list[str]) -> None:
    assert not loaded_by(words) & HEAVY


def test_the_check_of_what_help_imports_can_fail() -> None:
    assert "matplotlib" in loaded_by(["--help"], "import matplotlib")


def loaded_by(words: list[str], first: str = "") -> set[str]:
    """Top-level modules that a process has loaded when the command is over."""
    script = (
        f"import sys, json, contextlib, io\n{first}\nsys.argv = ['tokenprune', *{words!r}]\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "    from tokenprune.cli import main\n    main()\n"
        "assert 'Usage: tokenprune' in shown.getvalue()\nprint(json.dumps(list(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return {name.partition(".")[0] for name in json.loads(ran.stdout)}
