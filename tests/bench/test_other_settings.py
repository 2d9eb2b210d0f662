"""The study of other settings, on a single step count and few captions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokenprune.bench.studies import other_settings
from tokenprune.bench.studies.other_settings import KINDS, SETTINGS, UNTOUCHED, compare, markdown, rivals
from tokenprune.plans.presets import best_plan
from tokenprune.schedule import rehearsed


@pytest.mark.parametrize("full", [14, 10, 7, 5])
def test_everything_has_as_many_full_steps(full: int) -> None:
    found = rivals(full, 28, 28, best_plan(full / 28))
    assert set(found) == set(KINDS)
    for configuration in found["step cache"]:
        assert configuration.plan is not None
        assert configuration.plan.schedule is not None
        steps = rehearsed(configuration.plan.schedule, 28)
        assert sum(configuration.plan.schedule.fraction(step) for step in steps) == full
    assert [each.steps for each in found["fewer steps"]] == [full]


def test_fewer_steps_of_second_order_call_the_model_as_often() -> None:
    (fewer,) = rivals(14, 29, 15, best_plan(14 / 29))["fewer steps"]
    assert fewer.steps == 7  # 13 calls


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("shapes-pixart, guidance 3, DDIM", 3),
        ("shapes-sd3, guidance 5, shift 3, Heun, 16 steps", 6),
    ],
)
def test_a_setting_is_compared(name: str, full: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_settings, "SHARES", (0.5,))
    monkeypatch.setattr(other_settings, "WARMUPS", (2,))
    setting = replace({**SETTINGS, **UNTOUCHED}[name], steps=6)
    found = compare(setting, ["a red circle", "a blue square"], ["a green star"])
    assert list(found) == [full]
    assert all(len(found[full][kind]["psnr_of_each"]) == 2 for kind in KINDS)
    assert markdown({name: found}).splitlines()[2].startswith(f"| {name} | {full} | ")
