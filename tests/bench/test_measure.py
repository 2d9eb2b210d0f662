"""Real runs of the embedded pipeline, measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenprune
from tokenprune import CATPolicy, Plan, SequentialPolicy, WarmupSchedule
from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.measuring.fidelity import (
    ci95_of,
    comparable,
    in_bytes,
    in_words,
    mean_of,
    psnr,
    psnr_of_each,
    psnr_summary,
    ssim_of_each,
)
from tokenprune.bench.measuring.measure import Task, draw
from tokenprune.bench.measuring.result_file import load
from tokenprune.bench.measuring.run import run
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED

PLAN = Plan(CATPolicy(alpha=0.3, warmup_steps=3))
CONFIGURATIONS = [plain(6), plain(4), Configuration("pruned", PLAN, source="somebody")]
SETTINGS = {"model": "shapes-sd3", "suite": "own", "split": "tuning", "command": "pytest"}


@pytest.fixture(scope="module")
def task() -> Task:
    prompts = scenes.texts("tuning", 3)
    return Task(prompts, 6, 4.0, 2, EMBEDDED["shapes-sd3"].arguments)


def test_a_run_measures_everything_once(pipe: Any, task: Task, tmp_path: Path) -> None:
    out, begun = tmp_path / "r.json", []
    results = run(pipe, CONFIGURATIONS, task, out, SETTINGS, begin=lambda one: begun.append(one.name))
    assert begun == ["plain, 6 steps", "plain, 4 steps", "pruned"]
    same, fewer, pruned = results.rows
    assert same["psnr_mean"] is same["psnr_ci95"] is None
    assert same["psnr_of_each"] == [None] * 3
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
    run(pipe, CONFIGURATIONS, task, out, SETTINGS, begin=lambda one: begun.append(one.name))
    assert begun == []


def test_an_interrupted_run_loses_one_configuration_at_most(pipe: Any, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "r.json"

    def stop_at_the_pruned(configuration: Configuration) -> None:
        if configuration.plan is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, CONFIGURATIONS, task, out, SETTINGS, begin=stop_at_the_pruned)
    assert [row["name"] for row in load(out).rows] == ["plain, 6 steps", "plain, 4 steps"]
    resumed = run(pipe, CONFIGURATIONS, task, out, SETTINGS)
    assert [row["name"] for row in resumed.rows] == [configuration.name for configuration in CONFIGURATIONS]


SHORT = Plan(SequentialPolicy(), WarmupSchedule(0.3, 1))


def attached(plan: Plan | None) -> Any:
    """Plans of ours as another package would put them on a pipeline."""

    def attach(pipe: Any) -> AbstractContextManager[Any]:
        return nullcontext() if plan is None else tokenprune.apply(pipe, plan)

    return attach


def short(task: Task, prompts: int = 1) -> Task:
    return Task(task.prompts[:prompts], 3, task.guidance_scale, 2, task.arguments)


def test_what_another_package_computes_is_counted_like_what_a_handle_reports(pipe: Any, task: Task) -> None:
    nothing = draw(pipe, Configuration("nothing", attach=attached(None)), short(task))
    assert (nothing.mac_ratio, nothing.linear_mac_ratio) == (1, 1)
    assert nothing.tokens_ratio is nothing.cache_bytes is None
    fewer = draw(pipe, Configuration("fewer", steps=2, attach=attached(None)), short(task))
    assert fewer.mac_ratio == pytest.approx(2 / 3)
    reported = draw(pipe, Configuration("ours", SHORT), short(task))
    counted = draw(pipe, Configuration("theirs", attach=attached(SHORT)), short(task))
    assert np.array_equal(counted.pictures, reported.pictures)
    assert reported.mac_ratio < 0.9
    assert counted.mac_ratio == pytest.approx(reported.mac_ratio, rel=1e-6)
    assert counted.linear_mac_ratio == pytest.approx(reported.linear_mac_ratio, rel=1e-6)


def test_a_timed_run_has_every_figure(pipe: Any, task: Task, tmp_path: Path) -> None:
    configurations = [plain(2), Configuration("pruned", SHORT, source="ours")]
    results = run(pipe, configurations, short(task), tmp_path / "r.json", SETTINGS, repeats=1, timing_batch=4)
    assert results.settings["repeats"] == results.settings["timing_batch"] == 1  # there is but one prompt
    assert results.settings["threads"] >= 1
    fewer, pruned = load(tmp_path / "r.json").rows
    for row in (fewer, pruned):
        assert row["model"] == "shapes-sd3"
        assert row["prompts"] == 1
        assert row["peak_memory_bytes"] > 0
        assert row["speedup"] == pytest.approx(row["plain_seconds_per_image"] / row["seconds_per_image"])
        assert 0 < row["seconds_per_step"] < row["seconds_per_image"]
        if row["transformer_speedup_noise"] is None:
            assert row["reached"] == pytest.approx(row["transformer_speedup"] / row["ideal_speedup"])
        else:  # the machine was busy: a ratio that says nothing has no share of what the operations allow
            assert row["reached"] is None
    assert fewer["selection_share"] == fewer["cache_bytes"] == 0
    assert fewer["hook_overhead"] is None
    assert 0 < pruned["selection_share"] < 1
    assert pruned["hook_overhead"] > -1
    # buffers of keys and values, and whatever else
    assert pruned["peak_memory_bytes"] > pruned["cache_bytes"] > 0


class Broken:
    """A method that fails, or not."""

    def __init__(self) -> None:
        self.fails = True

    @contextmanager
    def __call__(self, pipe: Any) -> Iterator[None]:
        if self.fails:
            raise TypeError("no\nsuch block" + 400 * "!")
        yield


def test_a_configuration_that_fails_is_a_row_and_is_tried_again(pipe: Any, task: Task, tmp_path: Path) -> None:
    out, method, fresh, begun = tmp_path / "r.json", Broken(), [], []
    configurations = [
        plain(3),
        Configuration("broken", attach=method, source="theirs"),
        plain(2),
        Configuration("theirs", attach=attached(None)),
        plain(1),
    ]

    def renew() -> Any:
        fresh.append(begun[-1])
        return pipe

    def measure() -> Any:
        return run(
            pipe, configurations, short(task), out, SETTINGS, lambda _: {"scene_score": 1.0},
            lambda one: begun.append(one.name), renew=renew,
        )  # fmt: skip

    measure()
    rows = load(out).rows
    assert [row["name"] for row in rows] == [configuration.name for configuration in configurations]
    failed = rows[1]
    assert failed["error"].startswith("TypeError: no such block!!")
    assert len(failed["error"]) == 300
    assert (failed["source"], failed["steps"]) == ("theirs", 3)
    assert not {"psnr_mean", "mac_ratio", "scene_score"} & failed.keys()
    assert 10 < rows[2]["psnr_mean"] < 99
    assert rows[2]["psnr_ci95"] is None  # of a single picture
    assert fresh == ["broken", "theirs"]  # after the failure, and after the other package's method
    method.fails = False
    begun.clear()
    measure()
    rows = load(out).rows
    assert begun == ["plain, 3 steps", "broken"]
    assert [row["name"] for row in rows] == [configuration.name for configuration in configurations]
    assert (rows[1]["psnr_mean"], rows[1]["mac_ratio"]) == (None, 1)


def test_what_fails_on_the_clock_is_a_failure_but_an_interrupt_is_not(
    pipe: Any, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise error("stop")

    monkeypatch.setattr("tokenprune.bench.measuring.run.time_pairs", stop)
    error: type[BaseException] = ValueError
    assert run(pipe, [plain(2)], short(task), tmp_path / "r.json", SETTINGS, repeats=1).rows[0]["error"] == (
        "ValueError: stop"
    )
    error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run(pipe, [plain(2)], short(task), tmp_path / "r.json", SETTINGS, repeats=1)


def test_a_method_of_another_package_is_drawn_not_taken_for_the_plain_model(
    pipe: Any, task: Task, tmp_path: Path
) -> None:
    configurations = [Configuration("theirs", attach=attached(SHORT))]
    (row,) = run(pipe, configurations, short(task), tmp_path / "r.json", SETTINGS).rows
    assert 10 < row["psnr_mean"] < 99
    assert row["tokens_ratio"] is row["cache_bytes"] is None
    assert row["ideal_speedup"] == 1 / row["total_mac_ratio"]


def test_pictures_do_not_depend_on_the_batch_of_a_task(pipe: Any, task: Task) -> None:
    configuration = CONFIGURATIONS[2]
    alone = Task(task.prompts[1:2], task.steps, task.guidance_scale, 1, task.arguments)
    whole = draw(pipe, configuration, task).pictures
    single = draw(pipe, configuration, alone).pictures
    assert whole.shape == (3, 64, 64, 3)
    # the seed is the picture's place in the task, so the second picture of one task is the first of none
    assert not np.array_equal(whole[1], single[0])
    moved = Task([task.prompts[0], *task.prompts[1:2]], task.steps, task.guidance_scale, 1, task.arguments)
    difference = draw(pipe, configuration, moved).pictures - whole[:2]
    assert np.abs(difference).max() <= 0.01


def test_fidelity_by_hand() -> None:
    reference = np.zeros((2, 16, 16, 3), dtype=np.float32)
    off = np.full_like(reference, 0.1)
    assert psnr_of_each(off, reference) == pytest.approx([20.0] * 2)
    dark, light = in_bytes(reference[0]), in_bytes(off[0])
    assert np.unique(light) == [26]
    assert psnr(dark, light, 255) == psnr(light, dark, 255) == pytest.approx(20 * np.log10(255 / 26))  # no wrap-around
    assert all(0 <= value < 1 for value in ssim_of_each(off, reference))
    assert ssim_of_each(off, off) == pytest.approx([1, 1])


def test_identical_pictures_have_no_psnr() -> None:
    made, reference = np.zeros((2, 2, 8, 8, 3), dtype=np.float32)
    made[1] = 0.001  # which bytes do not show
    found = psnr_of_each(made, reference)
    assert found == [None, pytest.approx(60, abs=1e-4)]
    assert psnr_summary(found) == (found[1], None)
    assert psnr_summary([None, None]) == psnr_summary([]) == (None, None)


def test_identical_pictures_count_as_those_that_nobody_can_tell_apart() -> None:
    """The least that two pictures of 192 bytes can differ by is one level in one of them."""
    made, reference = np.zeros((2, 1, 8, 8, 3), dtype=np.float32)
    made[0, 3, 4, 1] = 1 / 255
    least = psnr(made[0], reference[0])
    assert least == pytest.approx(10 * np.log10(255**2 * 192))
    assert comparable([None, 30.0, 150.0], made) == [pytest.approx(least), 30.0, pytest.approx(least)]


def test_the_interval_by_hand() -> None:
    """Student's t for two degrees of freedom is 4.303, for 63 it is 1.998."""
    assert mean_of([1.0, 2.0, 3.0]) == 2
    assert ci95_of([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert ci95_of([0.0, 2.0] * 32) == pytest.approx(1.9983 * np.sqrt(64 / 63) / 8, rel=1e-4)
    assert ci95_of([4.0]) is ci95_of([]) is None
    assert psnr_summary([30.0, None, 32.0]) == (31.0, pytest.approx(12.7062, rel=1e-4))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((45.52, 0.61), "45.5 ± 0.6"),
        ((45.52, None), "45.5"),
        ((None, None), "identical"),
        ((45.52, 0.61, 2), "45.5 ± 0.6, 2 identical"),
        ((45.52, 0.61, 0, 2), "45.52 ± 0.61"),
    ],
)
def test_a_psnr_in_words(given: tuple[Any, ...], text: str) -> None:
    assert in_words(*given) == text
