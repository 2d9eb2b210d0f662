"""`tokenprune bench`, on an embedded model and on a directory of diffusers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tokenprune import CATPolicy, Plan, save_plan
from tokenprune.bench.measuring.result_file import Results
from tokenprune.cli.app import APP
from tokenprune.embedded.load import EMBEDDED

UNTIMED = ("--repeats", "0", "--device", "cpu")
SMALL = ("--suite", "sensitivity", "--prompts", "2", "--steps", "12", "--batch", "2", *UNTIMED)
DIRECTORY = str(EMBEDDED["shapes-sd3"].folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(APP, ["bench", *arguments])


def settings(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["settings"]


def test_the_command_runs_by_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tokenprune", "bench", *SMALL, "--out", str(tmp_path / "small.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "plain, 10 steps" in result.stdout
    told = [line.partition(": finished in")[0] for line in result.stderr.splitlines() if "finished in" in line]
    assert told == ["plain, 12 steps", "plain, 10 steps"]
    assert re.search(r"\(1 of 2, about \d+ \w+ left\)$", result.stderr.splitlines()[-2])
    assert result.stderr.endswith(" (2 of 2)\n")
    plain = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    content = json.loads((tmp_path / "small.json").read_text())
    assert plain == {name: content[name] for name in ("settings", "rows")} | {"results": str(tmp_path / "small.json")}
    assert "\x1b" not in result.stderr + result.stdout
    wrong = subprocess.run([*command, "--split", "train"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("tokenprune bench: split: ")


def test_a_suite_gives_tables_a_file_a_plot_and_renews_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plotted: list[tuple[Results, Path]] = []
    pareto = SimpleNamespace(plot=lambda results, path: plotted.append((results, path)))
    monkeypatch.setitem(sys.modules, "tokenprune.bench.tables.pareto", pareto)
    out, document, table = tmp_path / "small.json", tmp_path / "page.md", tmp_path / "new" / "table.md"
    document.write_text("# Page\n<!-- small.json: start -->\n<!-- small.json: end -->\n")
    plot = tmp_path / "new" / "plot.png"
    outputs = ("--out", str(out), "--into", str(document), "--markdown", str(table), "--plot", str(plot))
    result = run(*SMALL, *outputs)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    assert [row["steps"] for row in content["rows"]] == [12, 10]
    assert 0 <= content["rows"][1]["scene_score"] <= 1
    assert "plain, 10 steps" in result.stdout
    assert table.read_text() in document.read_text()
    assert "2 captions of the held-out split, 12 steps, guidance 7.0" in table.read_text()
    ((results, path),) = plotted
    assert (results.rows, path) == (content["rows"], plot)


def test_the_settings_say_what_the_rows_depend_on(tmp_path: Path) -> None:
    found = []
    for number, options in enumerate([(), ("--split", "tuning", "--argument", "max_sequence_length=2")]):
        out = tmp_path / f"{number}.json"
        assert run(*SMALL, "--prompts", "1", *options, "--out", str(out)).exit_code == 0
        found.append(settings(out))
    first, other = found
    unsteady = ("date", "machine", "versions", "metrics", "metrics_left_out")
    assert first | dict.fromkeys(unsteady) == dict.fromkeys(unsteady) | {
        "model": "shapes-sd3",
        "suite": "sensitivity",
        "split": "held-out",
        "configurations": first["configurations"],
        "prompts_source": "captions of the held-out split",
        "prompts_digest": first["prompts_digest"],
        "arguments": {"max_sequence_length": 1},
        "command": "tokenprune bench --suite sensitivity --model shapes-sd3 --device cpu --prompts 1 --split held-out "
        "--steps 12 --guidance-scale 7.0 --batch 2 --repeats 0",
        "dtype": "float32",
        "device": "cpu",
        "steps": 12,
        "guidance_scale": 7.0,
        "prompts": 1,
        "batch": 2,
        "repeats": 0,
        "compared": "float",
    }
    assert first["prompts_digest"] != other["prompts_digest"]
    assert other["arguments"] == {"max_sequence_length": 2}
    assert other["command"].endswith(" --argument max_sequence_length=2")


def test_a_directory_is_measured_with_configurations_and_prompts_of_ones_own(
    tmp_path: Path, refused: Callable[..., None]
) -> None:
    config, texts, out = tmp_path / "own.yaml", tmp_path / "p.txt", tmp_path / "own.json"
    save_plan(Plan(CATPolicy(alpha=0.5, warmup_steps=2)), tmp_path / "plan.json")
    config.write_text("configuration:\n- {name: ours, plan_file: plan.json}\n- {name: three, steps: 3}\n")
    texts.write_text("a red circle\na blue star\n")
    given = ("--model", DIRECTORY, "--argument", "max_sequence_length=1", "--steps", "4", *UNTIMED)
    options = (*given, "--config", str(config), "--prompts-file", str(texts), "--out", str(out))
    result = run(*options)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert [*rows] == ["plain, 4 steps", "plain, 3 steps", "plain, 2 steps", "plain, 1 steps", "ours", "three"]
    assert rows["ours"]["tokens_ratio"] == pytest.approx((2 + 2 * 0.5) / 4)
    assert rows["three"]["psnr_mean"] == rows["plain, 3 steps"]["psnr_mean"]
    assert "scene_score" not in rows["ours"]
    assert (content["settings"]["guidance_scale"], content["settings"]["prompts"]) == (7.0, 2)
    assert content["settings"]["config"] == str(config)
    assert f"2 prompts of {texts}" in " ".join(str(content["settings"][name]) for name in ("prompts", "prompts_source"))
    assert run(*options).exit_code == 0  # taken up again
    texts.write_text("a red circle\na green star\n")
    refused("bench", run(*options), "own.json: was measured with another prompts_digest")
    save_plan(Plan(CATPolicy(alpha=0.4, warmup_steps=2)), tmp_path / "plan.json")
    refused("bench", run(*options), "own.json: was measured with another configurations, prompts_digest")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "everything"), "suite: expected one of"),
        (("--suite", "plans", "--config", "x.toml"), "suite: expected none beside --config, got 'plans'"),
        (("--config", "missing.toml"), "missing.toml: expected a readable toml file"),
        (
            ("--model", "./shapes-sd4"),
            f"model: expected {', '.join(EMBEDDED)}, random:..., or the directory or",
        ),
        (("--dtype", "int8"), "dtype: expected one of"),
        (("--device", "tpu"), "device: expected one of"),
        (("--argument", "height"), "argument: expected name=value"),
        (("--argument", "hight=8"), "argument: expected one of"),
        (("--split", "train"), "split: expected one of"),
        (("--budget", "1.5"), "budget: expected a share"),
        (("--budget", "0"), "budget: expected a share"),
        (("--prompts-file", "missing.txt"), "missing.txt: expected a text file"),
        (("--prompts-from", "cats"), "prompts: expected parti-prompts, coco-2014, coco-2017 or dataset:"),
        (
            ("--prompts-from", "coco-2017", "--prompts-file", "p.txt"),
            "prompts: expected --prompts-file or --prompts-from",
        ),
        (("--metric", "fid"), "metric: expected one of lpips, clip-score, clip-iqa, pick-score, got 'fid'"),
        (("--metric", "clip-score"), "metric: expected clip-score=MODEL"),
        (("--metric", "pick-score=nowhere/at-all"), "metric: pick-score=nowhere/at-all cannot be loaded: "),
        (("--plot", "plot.jpg"), "plot: expected a file that ends in .png"),
        (("--into", "missing.md"), "into: expected a document with the lines"),
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
    refused("bench", run(*arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_file_without_prompts_exits_with_code_2(tmp_path: Path, refused: Callable[..., None]) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing yet\n")
    refused("bench", run(*SMALL[:2], "--prompts-file", str(empty)), "empty.txt: expected some, got none")


def test_a_pipeline_without_guidance_takes_no_scale(tmp_path: Path, refused: Callable[..., None]) -> None:
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "Flux2KleinKVPipeline", "transformer": ["diffusers", "Model"]})
    )
    refused("bench", run("--model", str(tmp_path), "--guidance-scale", "3"), "guidance-scale: expected none")


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}, "rows": [{"name": "x"}]}'])
def test_a_corrupted_file_exits_with_code_2(content: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(content)
    refused("bench", run(*SMALL, "--out", str(broken)), "broken.json")
    assert broken.read_text() == content
