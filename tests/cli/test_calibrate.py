"""`tokenprune calibrate`, on an embedded model by its directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

import tokenprune
from tokenprune.cli.app import APP
from tokenprune.embedded.load import EMBEDDED, load_shapes_sd3
from tokenprune.plans.presets import best_plan

DIRECTORY = str(EMBEDDED["shapes-sd3"].folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(APP, ["calibrate", *arguments])


def test_a_model_of_ones_own_gets_a_plan_file_that_applies(tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "new" / "plan.yaml"
    given = ("--model", DIRECTORY, "--device", "cpu", "--argument", "max_sequence_length=1", "--prompts", str(prompts))
    result = run(*given, "--budget", "0.5", "--steps", "6", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    notes = yaml.safe_load(out.read_text())["notes"]
    told = json.loads(result.stdout)
    assert told == {**notes, "calibrated": notes["verdict"].startswith("Calibration helped ("), "plan": str(out)}
    assert result.stderr.endswith(" (7 of 7)\n")
    assert (notes["model"], notes["budget"], notes["steps"]) == (DIRECTORY, 0.5, 6)
    assert (notes["measured_on"]["count"], notes["held_out_prompts"]["count"]) == (2, 2)
    assert notes["sampler"] == "FlowMatchEulerDiscreteScheduler"
    assert notes["command"].startswith("tokenprune calibrate --model ")
    assert list(notes["rows"]) == ["as it was", "calibrated", "plain, 3 steps"]
    assert {"versions", "machine", "date"} <= set(notes)
    plan = tokenprune.load_plan(out)
    assert (plan == best_plan(0.5)) == (not told["calibrated"])
    assert notes["changes"] in notes["tried"]

    pipe: Any = load_shapes_sd3()
    with tokenprune.apply(pipe, plan) as handle:
        pipe("a green cross", num_inference_steps=6, max_sequence_length=1, output_type="latent")
        assert handle.report().mac_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "1.5"), "budget: expected a share of the plain model's operations in (0, 1), got 1.5"),
        (("--model", "./shapes-sd4"), f"model: expected {', '.join(EMBEDDED)}"),
        (("--prompts", "missing.txt"), "missing.txt: expected a text file with prompts"),
        (("--out", "plan.toml"), "out: expected a file that ends in .json, .yaml, .yml, got plan.toml"),
    ],
)
def test_bad_settings_exit_with_code_2(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused("calibrate", run(*arguments), message)
    assert not list(tmp_path.iterdir())
