"""The code of docs/generate.md runs, and the page says what the package does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tokenprune
from tokenprune.generate.jobs import Job, read_jobs

PAGE = (Path(tokenprune.__file__).parents[1] / "docs" / "generate.md").read_text()


def test_the_code_draws_two_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, names := {})
    assert (names["summary"].drawn, names["summary"].failed) == (2, {})
    assert sorted(file.name for file in (tmp_path / "pictures").glob("*.png")) == ["000000.png", "000001.png"]


def test_the_line_of_json_is_one(tmp_path: Path) -> None:
    (line,) = re.findall(r"`(\{.*?\})`", PAGE)
    (tmp_path / "p.jsonl").write_text(line)
    told = json.loads(line)
    assert read_jobs(tmp_path / "p.jsonl") == (Job(told["name"], told["prompt"], told["seed"]),)


def test_the_packages_and_versions_that_were_tried_are_those_of_the_tests() -> None:
    (tried,) = re.findall(r"ray (\d+\.\d+\.\d+)", PAGE)
    assert f"ray=={tried}" in (Path(tokenprune.__file__).parents[1] / "constraints.txt").read_text().splitlines()
