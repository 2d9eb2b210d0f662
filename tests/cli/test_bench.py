"""`tokenprune bench` on the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokenprune", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


SMALL = ("--suite", "sensitivity", "--prompts", "2", "--steps", "12", "--batch", "2")


def test_a_suite_gives_a_table_and_a_file_and_renews_a_document(tmp_path: Path) -> None:
    out, document = tmp_path / "small.json", tmp_path / "page.md"
    document.write_text("# Page\n<!-- small.json: start -->\n<!-- small.json: end -->\n")
    result = run(*SMALL, "--out", str(out), "--into", str(document))
    assert result.returncode == 0, result.stderr
    content = json.loads(out.read_text())
    assert [row["steps"] for row in content["rows"]] == [12, 10]
    assert content["settings"]["guidance_scale"] == 7.0
    assert 0 <= content["rows"][1]["scene_score"] <= 1
    assert "plain, 10 steps" in document.read_text()
    assert "plain, 10 steps" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "everything"), "suite"),
        (("--model", "shapes-sd4"), "model"),
        (("--split", "train"), "split"),
        (("--budget", "1.5"), "budget"),
        (("--prompts", "0"), "--prompts"),
    ],
)
def test_bad_settings_exit_with_code_2(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_corrupted_file_and_a_missing_document_exit_with_code_2(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for arguments, message in (
        (("--out", str(broken)), "broken.json"),
        (("--out", str(tmp_path / "new.json"), "--into", str(tmp_path / "missing.md")), "into"),
    ):
        result = run(*SMALL, *arguments)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
