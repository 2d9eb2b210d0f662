"""`tokenprune figures` on the embedded model, in few steps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from tokenprune.bench.figures import FIGURES
from tokenprune.bench.figures.canvas import decibels, difference, faded, over_pixels
from tokenprune.bench.figures.clusters import neighbours_together
from tokenprune.bench.figures.noise import pearson
from tokenprune.bench.figures.runs import Runs, Settings
from tokenprune.bench.figures.strategies import STRATEGIES
from tokenprune.cli import options
from tokenprune.cli.app import APP
from tokenprune.embedded import scenes

STEPS, WARMUP, ALPHA, TOKENS, COUNT = 7, 3, 0.25, 256, 64
SHORT = ("--steps", str(STEPS), "--warmup-steps", str(WARMUP), "--alpha", str(ALPHA))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokenprune", "figures", *SHORT, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures") / "all"
    result = run("--out", str(out))
    assert all(f"{name}.png" in result.stdout for name in FIGURES)
    return out


@pytest.fixture(scope="module")
def numbers(folder: Path) -> dict[str, Any]:
    written = json.loads((folder / "figures.json").read_text())
    assert set(written) == {"settings", "figures"}
    assert written["settings"]["model"] == "shapes-sd3"
    assert (written["settings"]["steps"], written["settings"]["alpha"]) == (STEPS, ALPHA)
    return written["figures"]


def test_every_figure_is_a_picture(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {*(f"{name}.png" for name in FIGURES), "figures.json"}
    for name in FIGURES:
        file = folder / f"{name}.png"
        assert 10_000 < file.stat().st_size < 150_000
        picture = np.asarray(Image.open(file).convert("RGB"))
        assert 700 < picture.shape[1] < 1300
        assert 250 < picture.shape[0] < 800
        assert picture.std() > 20


def test_samples(numbers: dict[str, Any]) -> None:
    found = numbers["samples"]
    (first, *captions) = found["psnr"].items()
    assert first == (options.PROMPT, numbers["strategies"]["CAT"]["psnr"])
    assert [caption for caption, _ in captions] == scenes.texts("held-out", 5)
    assert all(15 < psnr < 80 for _, psnr in captions)
    assert found["tokens_ratio"] == numbers["strategies"]["CAT"]["tokens_ratio"]
    assert found["tokens_ratio"] < found["mac_ratio"] < 1


def test_noise(numbers: dict[str, Any]) -> None:
    found = numbers["noise"]
    assert found["reference_step"] == WARMUP - 2
    for key in ("r_relative_noise", "r_change"):
        assert list(found[key]) == ["3", "4", "5", "6"]
        assert all(0.3 < r < 1 for r in found[key].values())
        assert found[f"{key}_mean"] == pytest.approx(np.mean(list(found[key].values())), abs=1e-3)


def test_tokens(numbers: dict[str, Any]) -> None:
    found = numbers["tokens"]
    assert found["steps_shown"] == [3, 4, 5, 6]
    for name in ("noise", "noise and staleness", "CAT"):
        # four pruned steps of 64 tokens reach all of 256 only without repetition
        assert 0 <= found[name]["never_computed"] <= 1 - ALPHA
        assert found[name]["psnr"] == numbers["strategies"][name]["psnr"]
    assert found["noise"]["never_computed"] > found["noise and staleness"]["never_computed"]


def test_clusters(numbers: dict[str, Any]) -> None:
    for found in numbers["clusters"].values():
        assert sum(found["sizes"]) == TOKENS
        assert 10 <= len(found["sizes"]) <= 20
        assert 0.4 < found["neighbours_together"] < 0.95


def test_strategies(numbers: dict[str, Any]) -> None:
    found = numbers["strategies"]
    share = (WARMUP * TOKENS + (STEPS - WARMUP) * COUNT) / (STEPS * TOKENS)
    *pruned, fewer = found
    assert pruned == list(STRATEGIES)
    for name in pruned:
        assert found[name]["tokens_ratio"] == pytest.approx(share, abs=1e-3)
        assert 15 < found[name]["psnr"] < 80
    steps = int(fewer.removeprefix("plain, ").removesuffix(" steps"))
    assert round(STEPS * share) <= steps <= round(STEPS * numbers["alpha"]["0.3"]["mac_ratio"]) < STEPS
    assert found[fewer]["tokens_ratio"] == pytest.approx(steps / STEPS, abs=1e-3)


def test_alpha(numbers: dict[str, Any]) -> None:
    found = numbers["alpha"]
    assert list(found) == ["0.2", "0.3", "0.5", "0.8", "1.0"]
    ratios = [row["mac_ratio"] for row in found.values()]
    assert ratios == sorted(ratios)
    assert found["0.8"]["psnr"] > found["0.2"]["psnr"]
    assert found["1.0"]["psnr"] is None
    assert found["1.0"]["mac_ratio"] == found["1.0"]["tokens_ratio"] == 1
    for row in found.values():
        assert row["plain_steps"] == round(STEPS * row["mac_ratio"])


def test_ages(numbers: dict[str, Any]) -> None:
    for found in numbers["ages"].values():
        ages = range(STEPS - WARMUP + 1)
        assert len(found["shares"]) == len(ages)
        assert found["shares"][0] == ALPHA
        assert sum(found["shares"]) == pytest.approx(1, abs=1e-3)
        assert found["mean"] == pytest.approx(np.dot(ages, found["shares"]), abs=0.01)
        assert found["max"] == max(age for age in ages if found["shares"][age])
    # four bands of 64 tokens in rotation, whatever the model says: 256, 384, 256 and 128 of 1024 are 0 to 3 steps old
    assert numbers["ages"]["consecutive rows"]["shares"] == [0.25, 0.375, 0.25, 0.125, 0]


def test_one_figure_alone_is_the_same_again(folder: Path, numbers: dict[str, Any], tmp_path: Path) -> None:
    result = run("--out", str(tmp_path), "--only", "ages", "--only", "clusters", "--only", "ages", "--json")
    assert {file.name for file in tmp_path.iterdir()} == {"ages.png", "clusters.png", "figures.json"}
    for name in ("ages", "clusters"):
        assert (tmp_path / f"{name}.png").read_bytes() == (folder / f"{name}.png").read_bytes()
    alone = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert alone == {name: numbers[name] for name in ("ages", "clusters")}
    told = json.loads(result.stdout)
    assert told["figures"] == alone
    assert (told["folder"], told["files"]) == (str(tmp_path), ["ages.png", "clusters.png", "figures.json"])


OWN = """
import torch
from tokenprune import ScorePolicy

class Rightmost(ScorePolicy):
    def score(self, observation, memory):
        columns = torch.arange(256) % 16
        memory["labels"] = (columns // 4).expand_as(observation.age).clone()
        return observation.age + columns / 100
"""


def test_a_policy_of_ones_own_is_shown_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, numbers: dict[str, Any]
) -> None:
    (tmp_path / "own_policy.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    run("--policy", "own_policy:Rightmost", "--out", "own", "--only", "ages", "--only", "tokens", "--only", "clusters")
    written = json.loads((tmp_path / "own" / "figures.json").read_text())
    assert written["settings"]["policies"] == ["own_policy:Rightmost"]
    found = written["figures"]
    for name in ("ages", "tokens", "clusters"):
        mine = found[name].pop("Rightmost")
        assert found[name] == numbers[name]
        assert (tmp_path / "own" / f"{name}.png").read_bytes() != (folder / f"{name}.png").read_bytes()
        if name == "clusters":
            assert mine == {"sizes": [64] * 4, "neighbours_together": pytest.approx(1 - 3 * 16 / 480, abs=1e-3)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "no_such:Policy"), "policy: no_such:Policy: ModuleNotFoundError: No module named 'no_such'"),
        (("--policy", "CAT"), "policy: expected one of CATPolicy"),
        (("--policy", "tokenprune:MixturePolicy"), "policy: MixturePolicy: "),
        (("--alpha", "1.5"), "alpha: expected a fraction of image tokens in (0, 1], got 1.5"),
        (("--alpha", "1"), "alpha: expected a fraction below 1"),
        (("--warmup-steps", "0"), "warmup_steps: expected a whole number of at least 1, got 0"),
        (("--steps", "10"), "steps: expected at least 11, the full steps and 3 pruned ones, got 10"),
        (("--only", "nothing"), f"only: expected one of {', '.join(FIGURES)}, got 'nothing'"),
        (("--model", "nothing"), "model: expected one of shapes-sd3"),
    ],
)
def test_bad_options_exit_with_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused("figures", CliRunner().invoke(APP, ["figures", *arguments, "--out", str(tmp_path / "out")]), message)
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_figure() -> None:
    shown = re.sub(r"[\s│]+", " ", CliRunner().invoke(APP, ["figures", "--help"]).stdout)
    *most, last = FIGURES
    assert f"{', '.join(most)} or {last}" in shown


def test_a_configuration_draws_once(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    calls = []

    class Pipe:
        transformer = sd3

        def __call__(self, prompt: str, num_inference_steps: int, **given: Any) -> SimpleNamespace:
            latents = generate(sd3, steps=num_inference_steps)
            calls.append((prompt, num_inference_steps, given["length"], given["generator"].initial_seed()))
            return SimpleNamespace(images=[latents[-1, 0, :3].sigmoid().permute(1, 2, 0).numpy()])

    runs = Runs(Pipe(), Settings("x", steps=9, warmup_steps=3, seed=5), {"length": 7})
    drawn = runs.draw(STRATEGIES["noise"](alpha=0.3, warmup_steps=3))
    assert runs.draw(STRATEGIES["noise"](alpha=0.3, warmup_steps=3)) is drawn
    assert calls == [("x", 9, 7, 5)]
    assert drawn.picture.shape == (8, 12, 3)
    assert [step.report.tokens for step in drawn.trace.steps] == [24] * 3 + [7] * 6
    fewer, steps = runs.fewer_steps(drawn)
    assert steps == round(9 * drawn.report.mac_ratio) == len(fewer.trace.steps)
    assert calls[1:] == [("x", steps, 7, 5)]
    error = np.square(drawn.picture.astype(float) - runs.dense.picture).mean()
    assert runs.psnr(drawn) == pytest.approx(10 * np.log10(255**2 / error))
    assert runs.psnr(runs.dense) is None
    assert len(calls) == 3
    other = runs.draw(STRATEGIES["noise"](alpha=0.3, warmup_steps=3), prompt="y")
    assert (calls[-1][0], other.prompt) == ("y", "y")
    assert runs.psnr(other) == pytest.approx(runs.psnr(drawn))  # the pipeline does not read its prompt
    assert [prompt for prompt, *_ in calls[3:]] == ["y", "y"]


def test_pearson_is_pearsons() -> None:
    first = np.array([1.0, 2.0, 3.0, 5.0])
    values = np.stack([first, 2 * first + 1, -first, np.array([1.0, 1.0, 0.0, 0.0])])
    centred = first - first.mean()
    last = values[3] - values[3].mean()
    expected = -(centred @ last) / np.sqrt((centred @ centred) * (last @ last))
    found = pearson(values, 1)
    assert found == {1: pytest.approx(1), 2: pytest.approx(-1), 3: pytest.approx(expected)}


def test_neighbours_together() -> None:
    """Of a 2 x 3 grid's seven edges, four join tokens of one cluster."""
    assert neighbours_together(torch.tensor([0, 0, 1, 0, 1, 1]), (2, 3)) == pytest.approx(4 / 7)


def test_over_pixels() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    assert over_pixels(torch.arange(6), (2, 3), picture).tolist() == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 1, 1, 2, 2],
        [3, 3, 4, 4, 5, 5],
        [3, 3, 4, 4, 5, 5],
    ]
    with pytest.raises(ValueError, match=r"expected \(h, w\) that divide the picture's 4 x 6 pixels, got \(3, 2\)"):
        over_pixels(torch.arange(6), (3, 2), picture)


def test_faded_and_difference() -> None:
    picture = np.array([[[30, 60, 90], [255, 255, 255]]], np.uint8)
    assert faded(picture, 0).tolist() == [[[60] * 3, [255] * 3]]
    assert faded(picture, 1).tolist() == [[[255] * 3] * 2]
    assert difference(picture, picture[:, ::-1]).tolist() == [[195, 195]]
    assert (decibels(None), decibels(41.26)) == ("identical", "41.3 dB")
