"""docs/cat.md against the code that it describes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tokenprune import CATPolicy
from tokenprune.bench.studies.paper_macs import FIGURES

PAGE = (Path(__file__).parents[2] / "docs" / "cat.md").read_text()


def test_its_code_runs(sd3: nn.Module) -> None:
    scope: dict[str, Any] = {"model": sd3}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(code, scope)
    scope["handle"].remove()


@pytest.mark.parametrize("setting", [field.name for field in fields(CATPolicy)])
def test_each_setting_has_its_rule(setting: str) -> None:
    """Rules that settings choose among name them; the start of k-means is no rule."""
    assert setting == "seed" or re.search(rf"`{setting}\b", PAGE)


def test_figures_of_a_step_times_steps_are_the_papers() -> None:
    """Those of the page's table, both models', but for the one that it calls an exception."""
    steps = {
        method: [float(figure) for figure in figures]
        for method, *figures in re.findall(r"^\| (dense|CAT|AT-EDM) \| ([\d.]+) \| ([\d.]+) \|", PAGE, re.M)
    }
    for (model, number), figures in FIGURES.items():
        place = ["SD3-medium", "PixArt-Sigma"].index(model)
        dense, *pruned = (steps[method][place] for method in ("dense", "CAT", "AT-EDM"))
        made = (number * dense, *(8 * dense + (number - 8) * each for each in pruned))
        for found, expected in zip(made, figures, strict=True):
            assert found == pytest.approx(215.50 if expected == 215.40 else expected, abs=1e-9)
