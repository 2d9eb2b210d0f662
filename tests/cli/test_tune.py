"""`tokenprune tune`, on an embedded model by its directory."""

from __future__ import annotations

import json
import re
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

DIRECTORY = str(EMBEDDED["shapes-sd3"].folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(APP, ["tune", *arguments])


def test_a_model_of_ones_own_gets_a_plan_file_that_applies(
    tmp_path: Path, prompts: Path, refused: Callable[..., None]
) -> None:
    out = tmp_path / "new" / "plan.yaml"
    given = ("--model", DIRECTORY, "--device", "cpu", "--argument", "max_sequence_length=1", "--prompts", str(prompts))
    options = (*given, "--budget", "0.6", "--steps", "4", "--trials", "1", "--out", str(out))
    result = run(*options)
    assert result.exit_code == 0, result.output
    notes = yaml.safe_load(out.read_text())["notes"]
    assert (notes["model"], notes["budget"], notes["steps"]) == (DIRECTORY, 0.6, 4)
    assert (notes["tuning_prompts"]["count"], notes["held_out_prompts"]["count"]) == (2, 2)
    assert notes["tuning_prompts"]["digest"] != notes["held_out_prompts"]["digest"]
    assert notes["command"].startswith("tokenprune tune --model ")
    assert notes["verdict"] in " ".join(result.output.split())
    assert {"versions", "date", "psnr_tuning", "psnr_held_out", "tokens_ratio"} <= set(notes)
    assert "plain, 2 steps" in notes["others"]
    assert "plain, 2 steps" in result.output
    assert notes["tokens_ratio"] <= 0.6

    pipe: Any = load_shapes_sd3()
    with tokenprune.apply(pipe, tokenprune.load_plan(out)) as handle:
        pipe("a green cross", num_inference_steps=4, max_sequence_length=1, output_type="latent")
        assert handle.report().tokens_ratio == pytest.approx(notes["tokens_ratio"], abs=1e-4)

    before = tokenprune.load_plan(out)
    journal = (tmp_path / "new" / "plan.yaml.journal").read_text()
    out.unlink()
    again = run(*options, "--json")  # taken up again: nothing left to try
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert (told["plan"], told["verdict"]) == (str(out), yaml.safe_load(out.read_text())["notes"]["verdict"])
    last = [line for line in again.stderr.splitlines() if "finished in" in line][-1]
    assert re.search(r"\((\d+) of \1\)$", last)  # all that were expected
    assert tokenprune.load_plan(out) == before
    assert (tmp_path / "new" / "plan.yaml.journal").read_text().count('"params"') == journal.count('"params"')
    refused("tune", run(*options, "--seed", "1"), "plan.yaml.journal: was tuned with another seed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "1.5"), "budget: expected a share of the plain model's tokens in (0, 1), got 1.5"),
        (("--budget", "0", "--cost", "macs"), "budget: expected a share of the plain model's macs in (0, 1), got 0.0"),
        (("--cost", "seconds"), "cost: expected one of tokens, macs, got 'seconds'"),
        (("--model", "./shapes-sd4"), f"model: expected {', '.join(EMBEDDED)}"),
        (("--model", DIRECTORY, "--argument", "max_sequence_length=1"), "prompts: expected a text file of prompts for"),
        (("--held-out-prompts", "prompts.txt"), "prompts: expected a text file of prompts for shapes-sd3"),
        (("--prompts", "missing.txt"), "missing.txt: expected a text file with prompts"),
        (("--prompts", "empty.txt"), "empty.txt: expected some, got none"),
        (("--prompts", "one.txt"), "one.txt: expected prompts to split, some to tune on and some to report on, got 1"),
        (("--prompts", "prompts.txt", "--tune-on", "4"), "prompts.txt: expected prompts to split, 4 to tune on"),
        (("--prompts", "prompts.txt", "--hold-out", "3", "--tune-on", "2"), "2 to tune on and 3 to report on, got 4"),
        (
            ("--prompts", "prompts.txt", "--held-out-prompts", "one.txt"),
            "held-out prompts: expected none that is tuned on, got 'a red circle'",
        ),
        (("--out", "plan.toml"), "out: expected a file that ends in .json, .yaml, .yml, got plan.toml"),
        (
            ("--out", "one.txt/plan.yaml"),
            "out: expected a file that can be written, got one.txt/plan.yaml: Not a directory",
        ),
    ],
)
def test_bad_settings_exit_with_code_2(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., None],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    (tmp_path / "one.txt").write_text("a red circle\n")
    before = sorted(tmp_path.iterdir())
    refused("tune", run(*arguments), message)
    assert sorted(tmp_path.iterdir()) == before


def test_a_pipeline_without_guidance_takes_no_scale(tmp_path: Path, refused: Callable[..., None]) -> None:
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "Flux2KleinKVPipeline", "transformer": ["diffusers", "Model"]})
    )
    refused("tune", run("--model", str(tmp_path), "--guidance-scale", "3"), "guidance-scale: expected none")
