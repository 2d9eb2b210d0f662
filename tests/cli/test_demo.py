"""`tokenprune demo` on the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tokenprune", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    panel = tmp_path_factory.mktemp("demo") / "panel.png"
    arguments = (
        "--steps",
        "10",
        "--warmup-steps",
        "4",
        "--alpha",
        "0.25",
        "--repeats",
        "1",
        "--out",
        str(panel),
        "--json",
    )
    result = run("demo", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_json_has_every_figure(outcome: dict[str, Any]) -> None:
    dense, cat, plan, fewer = (outcome[name] for name in ("dense", "CAT", "plan", "fewer"))
    for row in (dense, cat, plan, fewer):
        assert row["seconds"] > 0
        assert row["speedup"] == pytest.approx(dense["seconds"] / row["seconds"])
        assert 0 <= row["scene_score"] <= 1
    assert cat["tokens_ratio"] == pytest.approx((4 * 256 + 6 * 64) / (10 * 256))
    assert plan["tokens_ratio"] == pytest.approx(cat["tokens_ratio"], abs=0.01)
    for row in (cat, plan):
        assert row["tokens_ratio"] < row["mac_ratio"] < 1
        assert 15 < row["psnr"] < 80
    assert fewer["steps"] == round(10 * cat["mac_ratio"])
    assert cat["cache_bytes"] > 2 * 8 * 2 * 256 * 128 * 4
    assert plan["cache_bytes"] > 1.5 * cat["cache_bytes"]
    assert (dense["psnr"], dense["cache_bytes"]) == (None, 0)
    assert outcome["settings"]["policy"]["alpha"] == 0.25
    assert outcome["settings"]["guidance_scale"] == 7.0


def test_the_panel_is_a_picture(outcome: dict[str, Any]) -> None:
    picture = np.asarray(Image.open(Path(outcome["panel"])).convert("RGB"))
    assert picture.shape[1] > 2 * picture.shape[0]
    assert picture.std() > 10


def test_a_prompt_outside_the_captions_has_no_score(tmp_path: Path) -> None:
    panel = tmp_path / ("long" * 30) / "panel.png"
    arguments = ("--steps", "4", "--warmup-steps", "2", "--repeats", "1", "--out", str(panel))
    result = run("demo", "something red", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"panel: {panel}\n" in result.stdout  # whole, however narrow the terminal
    assert panel.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--alpha", "1.5"), "alpha"),
        (("--warmup-steps", "0"), "warmup_steps"),
        (("--steps", "0"), "--steps"),
        (("--model", "x"), "model"),
    ],
)
def test_bad_settings_exit_with_code_2(arguments: tuple[str, ...], message: str) -> None:
    result = run("demo", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
