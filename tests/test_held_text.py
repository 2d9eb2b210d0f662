"""Schedules that hold the text: what they take over from the schedule within, and which steps compute text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenprune import (
    BudgetSchedule,
    CATPolicy,
    HeldText,
    ListSchedule,
    PlacedSchedule,
    Plan,
    RefreshSchedule,
    Schedule,
    WarmupSchedule,
    load_plan,
    save_plan,
)
from tokenprune.macs.rehearsal import counts_of, texts_of
from tokenprune.schedule import rehearsed

SCHEDULES = (
    WarmupSchedule(0.3, 4),
    RefreshSchedule(3, 0.4),
    RefreshSchedule(3),
    BudgetSchedule(0.5),
    PlacedSchedule(0.5),
    ListSchedule((1, 0, 0.5)),
)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_image_tokens_are_those_of_the_schedule_within(schedule: Schedule) -> None:
    held = HeldText(schedule, every=2)
    for step in rehearsed(schedule, 12):
        assert held.fraction(step) == schedule.fraction(step)
        assert held.count(step, 100) == schedule.count(step, 100)
        assert held.may_prune_after(step) == schedule.may_prune_after(step)
    for name in ("skips", "computes_parts", "keeps_keys", "asks_errors"):
        assert getattr(held, name) == getattr(schedule, name)
    assert held.prunes(12) == schedule.prunes(12)
    assert not schedule.holds_text
    assert held.holds_text


@pytest.mark.parametrize(
    ("schedule", "every", "computed"),
    [
        (WarmupSchedule(0.3, 4), 1, "1111111111"),
        (WarmupSchedule(0.3, 4), 2, "1111010101"),
        (WarmupSchedule(0.3, 4), 3, "1111001001"),
        (WarmupSchedule(0.3, 4), None, "1111000000"),
        (RefreshSchedule(4, 0.5), None, "1000100010"),
        (RefreshSchedule(4, 0.5), 2, "1010101010"),
        (ListSchedule((1, 0, 0.5)), 2, "1010101010"),
        (ListSchedule((1, 0.5, 0, 0.5, 1, 0.5)), 3, "1001100100"),
    ],
)
def test_text_is_computed_when_it_is_old_enough(schedule: Schedule, every: int | None, computed: str) -> None:
    held = HeldText(schedule, every)
    counts = counts_of(held, 10, len(computed))
    found = zip(counts, texts_of(held, counts, 10), strict=True)
    assert "".join(str(int(text and count > 0)) for count, text in found) == computed
    assert held.holds_text is (every != 1)


@pytest.mark.parametrize("every", [0, -1])
def test_bad_settings(every: int) -> None:
    with pytest.raises(ValueError, match="every: expected a whole number of at least 1, or None"):
        HeldText(WarmupSchedule(0.3, 4), every)


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule: expected a Schedule"):
        HeldText(0.3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every: expected a whole number or None"):
        HeldText(WarmupSchedule(0.3, 4), 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_plan_files_hold_it(tmp_path: Path, suffix: str) -> None:
    plan = Plan(CATPolicy(0.3), HeldText(WarmupSchedule(0.3, 8), None))
    save_plan(plan, tmp_path / f"plan.{suffix}")
    assert load_plan(tmp_path / f"plan.{suffix}") == plan
