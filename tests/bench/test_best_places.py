"""Where full steps serve best, by the noise level, and the table that the recommended plan takes from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenprune import PlacedSchedule
from tokenprune.bench.studies import best_places
from tokenprune.bench.studies.best_places import levels_at, markdown, places_of
from tokenprune.bench.studies.other_settings import SETTINGS
from tokenprune.embedded import scenes

DOCS = Path(__file__).parents[2] / "docs"


def test_levels_are_on_the_line_between_full_steps() -> None:
    sigmas = [1.0, 0.8, 0.6, 0.4, 0.2]
    assert levels_at((0, 2), sigmas, (0.0, 0.25, 0.5, 0.75, 1.0)) == pytest.approx([1.0, 0.8, 0.6, 0.3, 0.0])


def test_the_places_of_a_setting_fall_with_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_places, "SHARES", (0.5,))
    setting = replace(SETTINGS["shapes-pixart, guidance 3, DDIM"], steps=8)
    found = places_of(setting, scenes.texts("tuning", 1))
    (levels,) = found.values()
    assert list(found) == [4]
    assert levels == sorted(levels, reverse=True)
    assert 0 <= levels[-1] < levels[0] <= 1
    assert "| shapes-sd3, made up | 4 | 0." in markdown({"shapes-sd3, made up": found})


def test_the_table_of_the_plan_is_what_was_measured() -> None:
    """It was taken from a run with 8 captions, and is the mean over shapes-sd3 up to a hundredth or two."""
    settings = json.loads((DOCS / "results" / "best-places.json").read_text())["settings"]
    rows = [levels for name, of in settings.items() if name.startswith("shapes-sd3") for levels in of.values()]
    assert len(rows) == 9
    np.testing.assert_allclose(PlacedSchedule.LEVELS[1:-1], np.mean(rows, axis=0), atol=0.021)
    page = (DOCS / "schedules-and-forecasts.md").read_text()
    assert markdown({name: {int(full): row for full, row in of.items()} for name, of in settings.items()}) in page
