"""Letting one part of the error through at a time, on the embedded pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenprune import DensePolicy, Hold, Plan, SequentialPolicy, WarmupSchedule
from tokenprune.bench.measuring.measure import Task, draw_all
from tokenprune.bench.studies.error_anatomy import draw_part, forecast_error_by_gap
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED

PARTS = ("predictions", "keys")


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(scenes.texts("tuning", 2), 6, 7.0, 2, EMBEDDED["shapes-sd3"].arguments)


def test_without_pruning_there_is_no_error_in_either_part(pipe: Any, task: Task) -> None:
    dense, transformer = draw_all(pipe, task.steps, task), pipe.transformer
    for part in PARTS:
        assert np.array_equal(draw_part(pipe, Plan(DensePolicy()), task, part).pictures, dense)  # type: ignore[arg-type]
        assert pipe.transformer is transformer


def test_each_part_is_an_error_of_its_own(pipe: Any, task: Task) -> None:
    plan = Plan(SequentialPolicy(), WarmupSchedule(0.3, 3))
    pictures = [draw_all(pipe, task.steps, task), *(draw_part(pipe, plan, task, part).pictures for part in PARTS)]  # type: ignore[arg-type]
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert not np.array_equal(one, other)
    errors = [np.abs(picture - pictures[0]).mean() for picture in pictures[1:]]
    assert all(0 < error < 0.08 for error in errors)


def test_forecast_error_grows_with_the_gap(pipe: Any, task: Task) -> None:
    longer = Task(task.prompts, 10, task.guidance_scale, 2, task.arguments)

    class Asking(SequentialPolicy):
        needs = frozenset({"forecast_error"})

    found = forecast_error_by_gap(pipe, longer, Plan(Asking(), WarmupSchedule(0.4, 3), Hold()))
    assert list(found) == sorted(found)
    assert len(found) >= 2
    assert all(values["tokens"] >= 100 and values["median"] > 0 for values in found.values())
    first, last = min(found), max(found)
    assert found[last]["median"] > found[first]["median"]
