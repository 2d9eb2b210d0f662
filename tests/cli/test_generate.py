"""`tokenprune generate`, on an embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import tokenprune
from tokenprune import CATPolicy, Plan, save_plan
from tokenprune.bench import commands
from tokenprune.bench.measuring import processes
from tokenprune.cli.app import APP
from tokenprune.embedded.load import EMBEDDED
from tokenprune.generate import ray_data
from tokenprune.generate.run import Summary
from tokenprune.plans.files import mapping_of

DIRECTORY = str(EMBEDDED["shapes-sd3"].folder)
SMALL = ("--steps", "4", "--device", "cpu")


def run(*words: object) -> Result:
    return CliRunner().invoke(APP, ["generate", *map(str, words)])


def report(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_a_file_of_prompts_becomes_pictures_with_the_recommended_plan(tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "new" / "pictures"
    result = run("--prompts", prompts, "--out", out, "--count", 2, *SMALL)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 of 2 pictures drawn in ")
    assert result.stdout.endswith(f" s: {out}\n")
    assert [line.partition(":")[0] for line in result.stderr.splitlines() if "finished in" in line] == [
        "000000",
        "000001",
    ]
    told = report(out / "000001.json")
    assert (told["prompt"], told["seed"], told["cost"]["mac_ratio"]) == ("a blue star", 1, 0.5)
    assert told["settings"]["plan"] == json.loads(json.dumps(mapping_of(tokenprune.plans.presets.best_plan(0.5))))
    assert told["settings"]["guidance_scale"] == 7.0
    again = run("--prompts", prompts, "--out", out, "--count", 2, *SMALL, "--json")
    told = json.loads(again.stdout)
    assert told == {"out": str(out), "prompts": 2, "drawn": 0, "before": 2, "failed": {}, "seconds": told["seconds"]}


def test_a_directory_with_a_plan_file_and_seeds_of_ones_own(tmp_path: Path) -> None:
    file, plan, out = tmp_path / "p.jsonl", tmp_path / "plan.yaml", tmp_path / "out"
    file.write_text('{"prompt": "a red circle", "seed": 9, "name": "red/one"}\n{"prompt": "a blue star"}\n')
    save_plan(Plan(CATPolicy(alpha=0.25, warmup_steps=2)), plan)
    given = ("--model", DIRECTORY, "--argument", "max_sequence_length=1", "--guidance-scale", 3, "--batch", 2)
    result = run("--prompts", file, "--out", out, "--plan", plan, "--seed", 5, *given, *SMALL)
    assert result.exit_code == 0, result.output
    first, second = report(out / "red" / "one.json"), report(out / "000001.json")
    assert (first["seed"], second["seed"]) == (9, 6)
    assert first["cost"]["tokens_of_steps"] == [256, 256, 64, 64]
    assert (first["pictures_in_call"], first["settings"]["guidance_scale"]) == (2, 3.0)
    settings = report(out / "settings.json")
    assert (settings["model"], settings["arguments"]) == (DIRECTORY, {"max_sequence_length": 1})


def test_budgets_data_sets_and_the_plain_model(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a red circle"}\n{"text": "a blue star"}\n')
    source = ("--prompts-from", f"dataset:{file}#text", "--count", 1)
    for option, ratio in ((("--budget", "0.75"), 0.75), (("--budget", "balanced"), 0.5), (("--plain",), None)):
        out = tmp_path / option[-1]
        assert run(*source, "--out", out, *option, *SMALL).exit_code == 0
        cost = report(out / "000000.json")["cost"]
        assert (cost and cost["mac_ratio"]) == ratio


def test_prompts_that_fail_exit_with_code_1(tmp_path: Path, prompts: Path) -> None:
    given = ("--prompts", prompts, "--out", tmp_path / "out", "--count", 2, "--argument", "height=7", *SMALL)
    result = run(*given)
    error = "ValueError: `height` and `width` have to be divisible by 4 but are 7 and 64."
    assert result.exit_code == 1
    assert f"000001 failed: {error}" in result.stdout
    assert "0 of 2 pictures drawn in " in result.stdout
    assert ", 2 failed: " in result.stdout
    assert "000000: failed after " in result.stderr
    told = json.loads(run(*given, "--json").stdout)
    assert list(told["failed"]) == ["000000", "000001"]


def test_ray_is_handed_the_request(tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run_with_ray(request: Any, jobs: Any, folder: Any, workers: int) -> Summary:
        asked.append((request.model, request.steps, request.device, len(jobs), folder.path, workers))
        return Summary(4, 4, {}, 1.0)

    monkeypatch.setattr(commands, "is_installed", lambda _: True)
    monkeypatch.setattr(ray_data, "run_with_ray", run_with_ray)
    result = run("--prompts", prompts, "--out", tmp_path / "out", "--ray", 3, *SMALL)
    assert result.exit_code == 0, result.output
    assert asked == [("shapes-sd3", 4, "cpu", 4, tmp_path / "out", 3)]


def test_ray_and_processes_of_accelerate_are_refused_together(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    monkeypatch.setattr(commands, "is_installed", lambda _: True)
    monkeypatch.setattr(processes, "state", lambda: SimpleNamespace(num_processes=2))
    result = run("--prompts", prompts, "--out", tmp_path / "out", "--ray", 2, *SMALL)
    refused("generate", result, "ray: expected one process, which starts the workers, got 2 of accelerate launch")


def test_ray_that_is_not_installed_is_named(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    monkeypatch.setattr(commands, "is_installed", lambda name: name != "ray")
    result = run("--prompts", prompts, "--out", tmp_path / "out", "--ray", 2, *SMALL)
    refused("generate", result, "the extra 'ray' is needed, of which ray is not installed: pip install 'tokenprune-dit")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "prompts: expected one of --prompts and --prompts-from, got none"),
        (
            ("--prompts", "p.txt", "--prompts-from", "coco-2017"),
            "prompts: expected one of --prompts and --prompts-from",
        ),
        (("--prompts", "missing.txt"), "missing.txt: expected a text file with prompts"),
        (("--prompts", "p.txt", "--count", "2"), "expected 2, got 1"),
        (("--prompts", "p.txt", "--plain", "--budget", "0.5"), "budget, plain: expected only one of plan, budget and"),
        (("--prompts", "p.txt", "--plan", "missing.yaml"), "missing.yaml: expected a readable yaml file"),
        (("--prompts", "p.txt", "--budget", "cheap"), "budget: expected a share or one of quality, balanced, fast"),
        (("--prompts", "p.txt", "--budget", "1.5"), "budget"),
        (("--prompts", "p.txt", "--model", "./shapes-sd4"), f"model: expected {', '.join(EMBEDDED)}"),
        (("--prompts", "p.txt", "--argument", "hight=8"), "argument: expected one of"),
        (("--prompts", "p.txt", "--seed", "-1"), "Invalid value for '--seed'"),
        (("--prompts", "p.txt", "--model", "video"), "expected a pipeline of pictures, got one of videos, with num_fr"),
    ],
)
def test_bad_settings_exit_with_code_2(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    (tmp_path / "p.txt").write_text("a red circle\n")
    (tmp_path / "video").mkdir()
    described = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "video" / "model_index.json").write_text(json.dumps(described))
    monkeypatch.chdir(tmp_path)
    refused("generate", run(*words), message)
    assert {each.name for each in tmp_path.iterdir()} == {"p.txt", "video"}


def test_another_run_in_the_same_folder_exits_with_code_2(
    tmp_path: Path, prompts: Path, refused: Callable[..., None]
) -> None:
    given = ("--prompts", prompts, "--out", tmp_path / "out", "--count", 1, "--device", "cpu")
    assert run(*given, "--steps", 2).exit_code == 0
    message = "pictures that were drawn with another plan, steps (2, now 3); choose another folder, or delete this one"
    refused("generate", run(*given, "--steps", 3, "--plain"), message)
