"""The study of other settings, on a single step count and few captions."""

from __future__ import annotations

import pytest

from tokenprune.bench.studies import other_settings
from tokenprune.bench.studies.other_settings import KINDS, SETTINGS, compare, markdown, rivals
from tokenprune.plans.presets import best_plan
from tokenprune.schedule import rehearsed


@pytest.mark.parametrize("full", other_settings.FULL_STEPS)
def test_everything_has_as_many_full_steps(full: int) -> None:
    found = rivals(full, best_plan(full / other_settings.STEPS))
    assert set(found) == set(KINDS)
    for configuration in found["step cache"]:
        assert configuration.plan is not None
        assert configuration.plan.schedule is not None
        steps = rehearsed(configuration.plan.schedule, other_settings.STEPS)
        assert sum(configuration.plan.schedule.fraction(step) for step in steps) == full
    assert [each.steps for each in found["fewer steps"]] == [full]


def test_a_setting_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_settings, "STEPS", 6)
    monkeypatch.setattr(other_settings, "FULL_STEPS", (4,))
    monkeypatch.setattr(other_settings, "WARMUPS", (2,))
    name = "shapes-pixart, guidance 3, DDIM"
    found = compare(SETTINGS[name], ["a red circle", "a blue square"], ["a green star"])
    assert all(len(found[4][kind]["psnr_of_each"]) == 2 for kind in KINDS)
    assert markdown({name: found}).splitlines()[2].startswith(f"| {name} | 4 | ")
