"""The page on traces and figures: its code runs, its pictures are there, its numbers are those of figures.json."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from tokenprune import TraceStep

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "figures.md").read_text()
NUMBERS = json.loads((DOCS / "images" / "figures" / "figures.json").read_text())["figures"]


def section(title: str) -> str:
    found = re.search(rf"^### {re.escape(title)}.*?\n(.*?)(?=^###|\Z)", TEXT, re.M | re.S)
    assert found
    return found[1]


def test_the_code_traces_a_generation(
    sd3: nn.Module,
    generate: Callable[..., Tensor],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"model": sd3, "generate": lambda: generate(sd3)}
    traced, plotted = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(traced, scope)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(int(step), int(tokens)) for step, tokens, *_ in lines] == [(i, 24 if i < 3 else 7) for i in range(6)]
    exec(plotted, scope)
    assert (tmp_path / "trace.png").is_file()
    assert "of the tokens; ages" in capsys.readouterr().out


def test_the_table_names_everything_of_a_step() -> None:
    public = {name for name, _ in inspect.getmembers(TraceStep) if not name.startswith("_")} | {"report"}
    first_cells = re.findall(r"^\| (`.*?) \|", TEXT, re.M)
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == public - {"nbytes"}


def test_every_figure_is_shown() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((.*?)\)", TEXT)
    assert {Path(path).stem for path in shown} == set(NUMBERS)
    for path in shown:
        assert 10_000 < (DOCS / path).stat().st_size < 150_000


def test_noise_numbers() -> None:
    text = section("Relative noise")
    for key in ("r_relative_noise", "r_change"):
        values = NUMBERS["noise"][key].values()
        mean = NUMBERS["noise"][f"{key}_mean"]
        assert f"{min(values):.3f} to {max(values):.3f}, {mean:.3f} on average" in " ".join(text.split())


def test_samples_numbers() -> None:
    text, found = section("The plain model's pictures"), NUMBERS["samples"]["psnr"].values()
    assert f"{min(found)} to {max(found)} dB" in text
    assert f"{NUMBERS['samples']['mac_ratio']:.0%}".replace("%", " %") in text


def test_other_numbers() -> None:
    assert f"{NUMBERS['tokens']['noise']['never_computed']:.0%}".replace("%", " %") in section("Which tokens")
    for found in NUMBERS["clusters"].values():
        assert f"{found['neighbours_together']:.0%}".replace("%", " %") in section("Clusters")
    for found in NUMBERS["strategies"].values():
        assert f"{found['psnr']:.1f}" in section("Strategies")
    for alpha, found in NUMBERS["alpha"].items():
        assert alpha == "1.0" or f"{found['psnr']:.1f}" in section("More and more")
    for name in ("CAT", "consecutive rows", "noise"):
        assert f"{NUMBERS['ages'][name]['mean']:.1f}" in section("How old")
