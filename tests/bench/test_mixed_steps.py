"""The study of full, pruned and skipped steps in one plan, on two captions."""

from __future__ import annotations

import pytest

from tokenprune import Plan, expect
from tokenprune.bench.studies import mixed_steps
from tokenprune.bench.studies.mixed_steps import PLANS, compare, markdown, mixed
from tokenprune.bench.studies.other_settings import SETTINGS
from tokenprune.embedded.load import load_shapes_pixart


def test_some_of_the_skipped_steps_compute_a_fraction() -> None:
    counts = expect(load_shapes_pixart(), mixed(12, 0.25, 14, 28), 28, text=48).counts
    assert counts.count(256) == 12
    assert set(counts[:14]) == {0, 256}
    assert set(counts[14:]) == {64, 256}


@pytest.mark.parametrize("name", list(PLANS))
def test_no_plan_computes_more_than_the_largest(name: str) -> None:
    found = expect(load_shapes_pixart(), PLANS[name], 28, text=48)
    assert 0.45 < found.mac_ratio < 0.58


def test_a_setting_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: dict[str, Plan] = {"mixed": mixed(12, 0.25, 1, 4), "plan": PLANS["14 full steps (the plan at a half)"]}
    monkeypatch.setattr(mixed_steps, "STEPS", 6)
    monkeypatch.setattr(mixed_steps, "PLANS", plans)
    name = "shapes-pixart, guidance 3, DDIM"
    found = compare(SETTINGS[name], ["a red circle", "a blue square"])
    assert {key: len(row["psnr_of_each"]) for key, row in found.items()} == {"mixed": 2, "plan": 2}
    assert found["mixed"]["mac_ratio"] != found["plan"]["mac_ratio"] == 0.5
    assert markdown({name: found}).splitlines()[2].startswith("| mixed | ")
