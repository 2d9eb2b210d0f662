"""The README's first code, as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_first_code_runs_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["image"].size == (64, 64)
    report = scope["handle"].report()
    assert (len(report.steps), sum(step.full for step in report.steps)) == (28, 14)
    assert report.mac_ratio == 0.5
    assert "50.0% of the MACs" in capsys.readouterr().out


def test_its_table_is_that_of_the_result_files() -> None:
    """Every figure of the first table stands in a result file's row, as the tables of docs/analysis.md print it."""
    analysis = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")
    table = README[README.index("| PSNR to the plain model's pictures") :].split("\n\n", maxsplit=1)[0]
    figures = re.findall(r"(\d+\.\d ± \d+\.\d) dB", table)
    assert len(figures) == 10
    assert all(f"| {figure} |" in analysis for figure in figures)
