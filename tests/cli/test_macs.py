"""`tokenprune macs` against the figures of the paper."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


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
