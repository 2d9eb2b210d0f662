"""Real runs of the embedded pipeline, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenprune import CATPolicy, Plan
from tokenprune.bench.configuration import Configuration, plain
from tokenprune.bench.measure import Task, draw, fidelity, mean_and_ci95
from tokenprune.bench.results import load
from tokenprune.bench.run import run
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED

PLAN = Plan(CATPolicy(alpha=0.3, warmup_steps=3))
CONFIGURATIONS = [plain(6), plain(4), Configuration("pruned", PLAN, source="somebody")]
SETTINGS = {"model": "shapes-sd3", "suite": "own", "split": "tuning", "command": "pytest"}


@pytest.fixture(scope="module")
def task() -> Task:
    prompts = [caption for caption, _ in scenes.captions("tuning", 3)]
    return Task(prompts, 6, 4.0, 2, EMBEDDED["shapes-sd3"].arguments)


def test_a_run_measures_everything_once(pipe: Any, task: Task, tmp_path: Path) -> None:
    out, begun = tmp_path / "r.json", []
    results = run(pipe, CONFIGURATIONS, task, out, SETTINGS, begin=lambda way: begun.append(way.name))
    assert begun == ["plain, 6 steps", "plain, 4 steps", "pruned"]
    same, fewer, pruned = results.rows
    assert same["psnr_mean"] == 99
    assert same["ssim_mean"] == pytest.approx(1)
    assert (fewer["tokens_ratio"], fewer["mac_ratio"]) == (pytest.approx(4 / 6), pytest.approx(4 / 6))
    assert pruned["tokens_ratio"] == pytest.approx((3 * 256 + 3 * 76) / (6 * 256))
    assert pruned["tokens_ratio"] < pruned["mac_ratio"] < 1
    assert pruned["ideal_speedup"] == pytest.approx(1 / pruned["total_mac_ratio"])
    assert pruned["cache_bytes"] > 0
    assert pruned["source"] == "somebody"
    assert "alpha=0.3" in pruned["plan"]
    for row in (fewer, pruned):
        assert 10 < row["psnr_mean"] < 80
        assert len(row["psnr_of_each"]) == 3
        assert row["psnr_ci95"] > 0
    assert load(out).rows == results.rows
    begun.clear()
    run(pipe, CONFIGURATIONS, task, out, SETTINGS, begin=lambda way: begun.append(way.name))
    assert begun == []


def test_an_interrupted_run_loses_one_configuration_at_most(pipe: Any, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "r.json"

    def stop_at_the_pruned(way: Configuration) -> None:
        if way.plan is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, CONFIGURATIONS, task, out, SETTINGS, begin=stop_at_the_pruned)
    assert [row["name"] for row in load(out).rows] == ["plain, 6 steps", "plain, 4 steps"]
    resumed = run(pipe, CONFIGURATIONS, task, out, SETTINGS)
    assert [row["name"] for row in resumed.rows] == [way.name for way in CONFIGURATIONS]


def test_pictures_do_not_depend_on_the_batch_of_a_task(pipe: Any, task: Task) -> None:
    way = CONFIGURATIONS[2]
    alone = Task(task.prompts[1:2], task.steps, task.guidance_scale, 1, task.arguments)
    whole = draw(pipe, way, task).pictures
    single = draw(pipe, way, alone).pictures
    assert whole.shape == (3, 64, 64, 3)
    # the seed is the picture's place in the task, so the second picture of one task is the first of none
    assert not np.array_equal(whole[1], single[0])
    moved = Task([task.prompts[0], *task.prompts[1:2]], task.steps, task.guidance_scale, 1, task.arguments)
    difference = draw(pipe, way, moved).pictures.astype(int) - whole[:2]
    assert np.abs(difference).max() <= 2


def test_fidelity_by_hand() -> None:
    reference = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    found = fidelity(np.full_like(reference, 10), reference)
    assert found["psnr"] == pytest.approx([20 * np.log10(25.5)] * 2, rel=1e-5)
    assert all(0 <= value < 1 for value in found["ssim"])


def test_the_interval_by_hand() -> None:
    mean, half = mean_and_ci95([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(1.96 / np.sqrt(3))
    assert mean_and_ci95([4.0]) == (4.0, 0.0)
