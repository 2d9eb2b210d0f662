"""`tokenprune macs` against the figures of the paper."""

from __future__ import annotations

import json
import subprocess
import sys
from math import floor
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tokenprune.cli.app import APP


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tokenprune", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, float]]:
    result = run("macs", "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_linear_macs_are_the_papers(rows: list[dict[str, float]]) -> None:
    assert {(row["model"], row["steps"]) for row in rows} == {
        (model, steps) for model in ("SD3-medium", "PixArt-Sigma") for steps in (28, 50)
    }
    for row in rows:
        assert row["linear_dense_T"] == pytest.approx(row["paper_dense_T"], rel=0.003)
        assert row["linear_pruned_T"] == pytest.approx(row["paper_pruned_T"], rel=0.003)


def test_the_papers_figures_are_those_of_a_step_cut_to_two_decimals(rows: list[dict[str, float]]) -> None:
    """All but PixArt-Sigma's 50 dense steps: there the paper has 215.40 where 50 times 4.31 is 215.50."""
    steps = {(row["model"], row["steps"]): row for row in rows}
    for model in ("SD3-medium", "PixArt-Sigma"):
        short, long = steps[model, 28], steps[model, 50]
        dense = floor(100 * short["linear_dense_T"] / 28) / 100
        for method in ("pruned", "at_edm"):
            pruned_step = (long[f"linear_{method}_T"] - short[f"linear_{method}_T"]) / 22
            for row in (short, long):
                cut = 8 * dense + (row["steps"] - 8) * floor(100 * pruned_step) / 100
                assert cut == pytest.approx(row[f"paper_{method}_T"], abs=1e-9)
        for row in (short, long):
            slip = 0.1 if (model, row["steps"]) == ("PixArt-Sigma", 50) else 0.0
            assert row["steps"] * dense == pytest.approx(row["paper_dense_T"] + slip, abs=1e-9)


def test_the_table_has_a_line_for_each_method() -> None:
    result = invoke("--steps", "28")
    lines = [line.split() for line in result.stdout.splitlines() if line.split()[:1] in (["SD3-medium"], ["AT-EDM"])]
    assert [lines[0][:5], lines[1][:3]] == [
        ["SD3-medium", "28", "dense", "168.33", "168.28"],
        ["AT-EDM", "93.62", "93.48"],
    ]


def test_attention_counts_towards_the_total(rows: list[dict[str, float]]) -> None:
    for row in rows:
        assert row["total_dense_T"] > row["linear_dense_T"]
        assert row["ideal_speedup"] == pytest.approx(row["total_dense_T"] / row["total_pruned_T"])
    sd3 = next(row for row in rows if row["model"] == "SD3-medium" and row["steps"] == 28)
    attention_per_step = 24 * 2 * 24 * (4096 + 333) ** 2 * 2 * 64
    assert sd3["total_dense_T"] - sd3["linear_dense_T"] == pytest.approx(28 * attention_per_step / 1e12, rel=1e-6)


def test_alpha_one_costs_what_the_plain_model_costs() -> None:
    result = run("macs", "--alpha", "1", "--steps", "10", "--json")
    for row in json.loads(result.stdout):
        assert row["total_pruned_T"] == row["total_dense_T"]
        assert row["paper_dense_T"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--alpha", "0"), "alpha"), (("--warmup-steps", "0"), "warmup_steps"), (("--steps", "0"), "steps")],
)
def test_bad_settings_exit_with_code_2(arguments: tuple[str, ...], message: str) -> None:
    result = run("macs", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(APP, ["macs", *arguments])


@pytest.fixture
def pixart(tmp_path: Path) -> str:
    settings = {"num_layers": 2, "sample_size": 8, "num_attention_heads": 2, "attention_head_dim": 8}
    settings |= {"cross_attention_dim": 16, "caption_channels": 16, "_class_name": "PixArtTransformer2DModel"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    return str(tmp_path)


def test_a_model_with_its_layers(pixart: str) -> None:
    options = ("--budget", "0.5", "--steps", "6", "--size", "64", "--per-layer", "--depth", "4", "--json")
    result = invoke(pixart, *options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    (generation,) = found["generations"]
    assert found["grid"] == [4, 4]
    assert generation["tokens"][0] == 16
    assert generation["total_pruned_T"] < generation["total_dense_T"]
    assert generation["mac_ratio"] == pytest.approx(1 / generation["ideal_speedup"])
    layers = {layer["module"]: layer for layer in found["layers"]}
    # two halves of 16 tokens of 16 channels, four projections; attention: twice tokens x tokens x channels
    assert layers["transformer_blocks.1.attn1"]["linear_full_T"] == pytest.approx(2 * 4 * 16 * 16 * 16 / 1e12)
    assert layers["transformer_blocks.1.attn1"]["attention_full_T"] == pytest.approx(2 * 2 * 16 * 16 * 16 / 1e12)
    share = found["pruned_call_tokens"] / 16
    attention = layers["transformer_blocks.1.attn1"]["attention_pruned_T"]
    assert attention == pytest.approx(share * layers["transformer_blocks.1.attn1"]["attention_full_T"])
    whole = layers[""]["linear_full_T"] + layers[""]["attention_full_T"]
    assert 6 * whole == pytest.approx(generation["total_dense_T"])


def test_a_table_has_one_row_for_blocks_that_are_alike(pixart: str) -> None:
    result = invoke(pixart, "--steps", "10", "--size", "64", "--per-layer", "--depth", "2")
    assert result.exit_code == 0, result.stderr
    assert "0 to 1, each" in result.stdout
    assert "tokens of 10 steps: 8 x 16, 2 x 4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: neither a directory"),
        (["SanaTransformer2DModel"], "SanaTransformer2DModel: token pruning cannot work with this model: its linear"),
        (["CONFIG", "--size", "24"], "height: expected a multiple of 16 pixels"),
        (["CONFIG", "--steps", "-1"], "steps: expected at least 1, got -1"),
        (["CONFIG", "--plan", "no.json"], "no.json"),
        (["CONFIG", "--budget", "0.5", "--alpha", "0.3"], "budget, alpha, warmup_steps: expected only one of"),
        (["CONFIG", "--budget", "2"], "budget: expected a share"),
        (["CONFIG", "--guidance", "twice"], "guidance: expected one of batched, separate, none, got 'twice'"),
        (["--budget", "0.5"], "budget: expected only with a MODEL"),
    ],
)
def test_bad_input_of_a_model(pixart: str, arguments: list[str], message: str) -> None:
    result = invoke(*(pixart if argument == "CONFIG" else argument for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
