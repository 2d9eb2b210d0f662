"""The README's first code, as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenprune
from tokenprune import policies

DOCS = Path(__file__).parents[2] / "docs"
README = (DOCS.parent / "README.md").read_text(encoding="utf-8")


def test_the_first_code_runs_as_typed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["image"].size == (64, 64)
    assert np.array_equal(np.asarray(Image.open("circle.png")), np.asarray(scope["image"]))
    report = scope["handle"].report()
    assert (len(report.steps), sum(step.full for step in report.steps)) == (28, 14)
    assert report.mac_ratio == 0.5
    assert "50.0% of the MACs" in capsys.readouterr().out


def test_its_table_is_that_of_the_result_files() -> None:
    """Every figure of the first table stands in a result file's row, as the tables of docs/analysis.md print it."""
    analysis = (DOCS / "analysis.md").read_text(encoding="utf-8")
    table = README[README.index("| PSNR to the plain model's pictures") :].split("\n\n", maxsplit=1)[0]
    figures = re.findall(r"(\d+\.\d ± \d+\.\d) dB", table)
    assert len(figures) == 15
    assert all(f"| {figure} |" in analysis for figure in figures)


def test_the_first_screen_is_short_and_its_reasons_are_measured() -> None:
    """One picture, one code, four reasons with a link each; their numbers stand on the linked pages."""
    first = README.split("## Set up")[0]
    assert len(re.findall(r"^!\[", first, re.M)) == len(re.findall(r"^```python", first, re.M)) == 1
    reasons = re.findall(r"^- (.*?)(?=^- |^\*\*|\Z)", first, re.M | re.DOTALL)
    assert len(reasons) == 4
    assert all("](docs/" in reason for reason in reasons)
    analysis, chooser = (page("analysis.md"), page("which-plan.md"))
    for claimed, row in (("60 to 70 dB", "`tokenprune.plan`"), ("54 to 59 dB", "best step cache")):
        (line, *_) = re.findall(rf"^\| {re.escape(row)} \| 0\.50 \|.*$", analysis, re.M)
        lowest, _, highest = sorted(float(mean) for mean in re.findall(r"(\d+\.\d) ±", line))
        assert claimed in reasons[0]
        assert (int(lowest), round(highest)) == tuple(map(int, re.findall(r"\d+", claimed)))
    assert "| tokenprune.plan, balanced | ours | 0.50 | 0.50 | 20.7 ±" in chooser
    assert "[21 dB](" in reasons[2]
    (level,) = re.findall(r"^\| shapes-pixart, guidance 3, DPM\+\+ 2M \| 14 \| (.*) \|$", analysis, re.M)
    plan, calibrated, cache, _ = re.findall(r"(\d+\.\d) ±", level)
    told = " ".join(reasons[3].split())
    assert f"[the best step cache had {cache} dB, the plan {plan} dB, and calibrated {calibrated} dB](" in told
    assert f"[{len(policies.ALL) - 1} more policies]" in reasons[1]


def test_each_column_of_its_table_is_explained() -> None:
    header = re.search(r"^\| (PSNR to the plain.*) \|$", README, re.M)
    assert header is not None
    explained = " ".join(re.findall(r"\*\*(.+?)\*\*", README.split("## What it reaches")[1]))
    for column in header[1].split(" | "):
        assert column.split(",")[0] in explained


def page(name: str) -> str:
    return (Path(tokenprune.__file__).parents[1] / "docs" / name).read_text(encoding="utf-8")


def test_the_settings_that_were_not_looked_at_are_counted() -> None:
    settings = json.loads((DOCS / "results" / "untouched-settings.json").read_text())["settings"]
    rows = [
        {kind: row["psnr_mean"] for kind, row in kinds.items()} for of in settings.values() for kinds in of.values()
    ]
    ahead = {
        (kind, rival): sum(row[kind] > row[rival] for row in rows)
        for kind in ("plan", "calibrated")
        for rival in ("step cache", "fewer steps")
    }
    caches = ahead["plan", "step cache"], ahead["calibrated", "step cache"]
    fewer = ahead["plan", "fewer steps"], ahead["calibrated", "fewer steps"]
    assert f"in {caches[0]} of {len(rows)} cases, and calibrated in {caches[1]}." in " ".join(README.split())
    told = (
        f"in {caches[0]} of {len(rows)} rows and of the plain model with as many steps in {fewer[0]}; calibrated, in "
    )
    assert told + f"{caches[1]} and {fewer[1]}." in " ".join(page("analysis.md").split())
