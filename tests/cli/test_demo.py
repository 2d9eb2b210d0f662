"""`tokenprune demo` on the embedded model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tokenprune import ListSchedule
from tokenprune.bench.configurations.step_caches import step_caches
from tokenprune.cli.app import APP
from tokenprune.embedded.load import EMBEDDED


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tokenprune", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("demo")
    arguments = (
        "--model",
        "shapes-sd3",
        "--steps",
        "10",
        "--warmup-steps",
        "4",
        "--alpha",
        "0.25",
        "--repeats",
        "1",
        "--out",
        str(folder / "panel.png"),
        "--html",
        str(folder / "page.html"),
        "--json",
    )
    result = run("demo", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_json_has_every_figure(outcome: dict[str, Any]) -> None:
    dense, plan, cat, cache, fewer = (outcome[name] for name in ("dense", "plan", "CAT", "cache", "fewer"))
    for row in (dense, plan, cat, cache, fewer):
        assert row["seconds"] > 0
        assert row["speedup"] == pytest.approx(dense["seconds"] / row["seconds"])
        assert 0 <= row["scene_score"] <= 1
    assert cat["tokens_ratio"] == pytest.approx((4 * 256 + 6 * 64) / (10 * 256))
    for row in (plan, cache, fewer):
        assert row["tokens_ratio"] == row["mac_ratio"] == int(10 * cat["tokens_ratio"]) / 10
    assert cat["tokens_ratio"] < cat["mac_ratio"] < 1
    for row in (plan, cat, cache):
        assert 15 < row["psnr"] < 80
    assert fewer["steps"] == int(10 * cat["tokens_ratio"])
    assert cat["cache_bytes"] > 2 * 8 * 2 * 256 * 128 * 4
    assert 0 < plan["cache_bytes"] < 0.1 * cat["cache_bytes"]  # it keeps no keys and values
    assert (dense["psnr"], dense["cache_bytes"]) == (None, 0)
    assert outcome["settings"]["policy"]["alpha"] == 0.25
    assert outcome["settings"]["guidance_scale"] == 7.0


def test_the_panel_is_a_picture(outcome: dict[str, Any]) -> None:
    picture = np.asarray(Image.open(Path(outcome["panel"])).convert("RGB"))
    assert picture.shape[1] > 2 * picture.shape[0]
    assert picture.std() > 10


def test_the_page_shows_the_runs(outcome: dict[str, Any]) -> None:
    text = Path(outcome["html"]).read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data = json.loads(found[1])
    assert data["title"] == outcome["settings"]["prompt"]
    assert [run["name"] for run in data["runs"]] == ["plan", "CAT", "plain model"]
    for run, name in zip(data["runs"], ("plan", "CAT", "dense"), strict=True):
        assert len(run["steps"]) == len(run["previews"]) == 10
        assert run["share"] == pytest.approx(outcome[name]["tokens_ratio"])
    _, cat, dense = data["runs"]
    assert [step["tokens"] for step in cat["steps"]] == [256] * 4 + [64] * 6
    assert [*cat["clusters"]] == ["labels"]
    assert data["dense"] == dense["previews"]["9"]  # what was traced is what was drawn
    assert cat["picture"] == cat["previews"]["9"] != data["dense"]
    assert dense["picture"] is None


def test_a_prompt_outside_the_captions_has_no_score(tmp_path: Path) -> None:
    panel = tmp_path / ("long" * 30) / "panel.png"
    arguments = ("--steps", "4", "--warmup-steps", "2", "--repeats", "1", "--out", str(panel))
    result = run("demo", "something red", *arguments)  # on the model that is drawn with if none is named
    assert result.returncode == 0, result.stderr
    assert f"panel: {panel}\n" in result.stdout  # whole, however narrow the terminal
    assert panel.is_file()
    warnings = [
        line for line in result.stderr.splitlines() if line.startswith("the generation that begins has 4 steps")
    ]
    assert len(warnings) == 1
    plain = [line for line in result.stderr.splitlines() if line not in warnings]  # no terminal: plain lines
    told = [line.partition(": finished in")[0] for line in plain]
    assert told[:2] == ["warm-up, dense", "warm-up, CAT"]
    assert all(line.startswith("step cache after ") for line in told[2:-5])
    drawn = ("dense", "plan", "CAT", "step cache", "2 steps")
    assert told[-5:] == [f"{name}, 1 of 1" for name in drawn]
    assert "\x1b" not in result.stderr + result.stdout


def test_a_picture_that_is_identical_is_null_in_json_and_named_on_the_screen(tmp_path: Path) -> None:
    """At alpha 1 CAT computes all tokens, and its picture is the plain model's."""
    options = (
        "--model",
        "shapes-sd3",
        "--alpha",
        "1",
        "--steps",
        "4",
        "--warmup-steps",
        "2",
        "--repeats",
        "1",
        "--out",
        str(tmp_path / "a.png"),
    )
    result = run("demo", *options, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["dense"]["psnr"] is found["CAT"]["psnr"] is found["fewer"]["psnr"] is None
    shown = run("demo", *options)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("identical") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--alpha", "1.5"), "alpha: expected a fraction of image tokens in (0, 1], got 1.5"),
        (("--warmup-steps", "0"), "warmup_steps: expected a whole number of at least 1, got 0"),
        (("--model", "x"), f"model: expected one of {', '.join(EMBEDDED)}, got 'x'"),
        (("--html", "page.htm"), "html: expected a file that ends in .html, got page.htm"),
        (("--out", "panel.jpg"), "out: expected a file that ends in .png, got panel.jpg"),
    ],
)
def test_bad_settings_exit_with_code_2(arguments: tuple[str, ...], message: str, refused: Callable[..., None]) -> None:
    refused("demo", CliRunner().invoke(APP, ["demo", *arguments]), message)


@pytest.mark.parametrize(
    ("full", "steps", "warmups"), [(2, 4, [1]), (3, 4, [1, 2]), (5, 10, [1, 2, 4]), (13, 28, [1, 2, 4, 8]), (4, 4, [])]
)
def test_step_caches_have_as_many_full_steps_as_the_plan(full: int, steps: int, warmups: list[int]) -> None:
    caches = step_caches(full, steps)
    assert [cache.name for cache in caches] == [f"step cache after {warmup}" for warmup in warmups]
    for cache in caches:
        assert cache.plan is not None
        assert isinstance(cache.plan.schedule, ListSchedule)
        assert cache.plan.schedule.fractions.count(1.0) == full
        assert len(cache.plan.schedule.fractions) == steps
