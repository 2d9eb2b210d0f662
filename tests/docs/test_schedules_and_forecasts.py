"""The code of docs/schedules-and-forecasts.md, as it stands there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import ClusterCorrection, EvenSchedule, FixedSchedule, HeldText, PlacedSchedule
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import (
    BudgetSchedule,
    LevelSchedule,
    ListSchedule,
    RefreshSchedule,
    WarmupSchedule,
)

PAGE = (Path(__file__).parents[2] / "docs" / "schedules-and-forecasts.md").read_text()


def test_the_pages_code_runs(sd3: nn.Module, generate: Callable[..., Tensor], capsys: Any) -> None:
    plain = generate(sd3)
    plan, first, held, second, clusters, third, told = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {"model": sd3, "generate": lambda: generate(sd3)}
    exec(plan, scope)
    exec(first, scope)
    images = [generate(sd3)]
    assert [step.tokens for step in scope["handle"].report().steps] == [24, 24, 24, 6, 6, 24]
    scope["handle"].remove()
    for code in (held, second):
        exec(code, scope)
        images.append(scope["image"])
    assert capsys.readouterr().out == "[24, 24, 24, 0, 7, 0]\n"
    exec(clusters, scope)
    images.append(scope["image"])
    exec(third, scope)
    images.append(scope["image"])
    assert capsys.readouterr().out == "[24, 12, 24, 12, 24, 12]\n"
    exec(told, scope)
    images.append(scope["image"])
    assert capsys.readouterr().out == "[24, 24, 0, 24, 0, 24]\n"
    for image, full in zip(images, (3, 3, 3, 3, 1, 2), strict=True):
        assert torch.equal(image[:full], plain[:full])
        assert not torch.equal(image[full], plain[full])
    assert torch.equal(generate(sd3), plain)


def _with_default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"{field.name}={field.default}"
    return field.name if field.default_factory is dataclasses.MISSING else f"{field.name}={field.default_factory()}"


def test_the_tables_list_every_argument() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE, re.MULTILINE))
    assert set(rows) == {
        "BudgetSchedule",
        "WarmupSchedule",
        "RefreshSchedule",
        "ListSchedule",
        "LevelSchedule",
        "PlacedSchedule",
        "EvenSchedule",
        "FixedSchedule",
        "HeldText",
        "Hold",
        "Taylor",
        "ClusterCorrection",
    }
    for kind in (
        BudgetSchedule,
        EvenSchedule,
        FixedSchedule,
        WarmupSchedule,
        RefreshSchedule,
        ListSchedule,
        LevelSchedule,
        PlacedSchedule,
        HeldText,
        Taylor,
        ClusterCorrection,
    ):
        listed = [_with_default(field) for field in dataclasses.fields(kind)]
        assert re.findall(r"`(.*?)`", rows[kind.__name__]) == listed
    public = {name for name in tokenprune.__all__ if name.endswith("Schedule")} - {"Schedule"}
    assert {name for name in rows if name.endswith("Schedule")} == public
