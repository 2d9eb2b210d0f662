"""Timing in pairs: order, what is on the clock, and the figures made of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.measuring import timing
from tokenprune.bench.measuring.measure import Task
from tokenprune.bench.measuring.memory import peak_memory
from tokenprune.bench.measuring.speed import median_and_spread, speed_of
from tokenprune.bench.measuring.timing import Timed, Timing, hook_overhead, time_pairs, timed
from tokenprune.reports.report import Macs, Report, StepReport

TASK = Task(["a", "b", "c"], 4, 1.0, 2, {})


class Scheduler:
    def step(self, value: Tensor) -> Tensor:
        return value


class Pipe:
    """Two calls of a transformer for each step, on a clock that everything moves on by a second."""

    def __init__(self, clock: list[float] | None = None) -> None:
        self.events: list[Any] = []
        self.transformer = nn.Linear(3, 3)
        self.scheduler = Scheduler()
        self._execution_device = torch.device("cpu")
        self.clock = [0.0] if clock is None else clock
        self.cost = 1.0
        self.transformer.register_forward_hook(self.take)

    def take(self, *_: Any) -> None:
        self.clock[0] += self.cost

    @torch.no_grad()
    def __call__(self, prompt: list[str], num_inference_steps: int, **arguments: Any) -> Any:
        self.events.append((num_inference_steps, len(prompt), len(self.transformer._forward_pre_hooks) > 0))
        self.clock[0] += 5  # texts and decoder
        for _ in range(num_inference_steps):
            for _ in range(2):
                self.transformer(torch.ones(2, 3))
            self.clock[0] += 0.25
            self.scheduler.step(torch.zeros(()))
        return SimpleNamespace(images=np.zeros((len(prompt), 2, 2, 3)))


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return Pipe(clock)


@contextmanager
def half(pipe: Pipe) -> Iterator[None]:
    """A method that halves the calls' time."""
    pipe.events.append("on")
    pipe.cost /= 2
    try:
        yield
    finally:
        pipe.cost *= 2
        pipe.events.append("off")


METHOD = Configuration("method", attach=half)


def test_pairs_take_turns_and_every_timed_generation_was_warmed_up(pipe: Pipe) -> None:
    result = time_pairs(pipe, METHOD, TASK, repeats=3, batch=2)
    warm, on_the_clock = (4, 2, False), (4, 2, True)
    own = ["on", warm, on_the_clock, "off"]
    assert pipe.events == [
        *[warm, "on", warm, "off"],  # both once, for the memory
        *[on_the_clock, *own],
        *[*own, on_the_clock],
        *[on_the_clock, *own],
    ]
    assert len(result.pairs) == 3
    for first, second in result.pairs:
        assert (first.seconds, second.seconds) == (5 + 4 * 2.25, 5 + 4 * 1.25)
        assert (first.steps, second.steps) == ((2.0,) * 4, (1.0,) * 4)


def test_figures_by_hand(pipe: Pipe) -> None:
    row = time_pairs(pipe, METHOD, TASK, repeats=2, batch=2).row(ideal_speedup=4.0)
    assert row["seconds_per_image"] == 5.0
    assert row["plain_seconds_per_image"] == 7.0
    assert row["seconds_per_step"] == 1.0
    assert row["speedup"] == pytest.approx(14 / 10)
    assert row["transformer_speedup"] == pytest.approx(2)
    assert row["reached"] == pytest.approx(0.5)
    assert row["seconds_per_image_spread"] == row["seconds_per_step_spread"] == 0
    assert row["selection_share"] == 0
    assert row["hook_overhead"] is None


def test_fewer_steps_are_timed_against_all_of_them(pipe: Pipe) -> None:
    ((dense, fewer),) = time_pairs(pipe, plain(1), TASK, repeats=1, batch=1).pairs
    assert (len(dense.steps), len(fewer.steps)) == (4, 1)
    assert fewer.transformer == 2


def test_spreads_are_interquartile_ranges() -> None:
    assert median_and_spread([1.0, 2.0, 3.0, 4.0, 10.0]) == (3.0, 2.0)
    pairs = tuple((Timed(8.0, (2.0, 2.0)), Timed(own, (own / 4, own / 2))) for own in (2.0, 4.0, 4.0, 8.0))
    row = Timing(pairs, 1, 0).row(4.0)
    assert row["seconds_per_image_spread"] == np.subtract(*np.percentile([2, 4, 4, 8], (75, 25)))
    assert row["speedup"] == np.median([4, 2, 2, 1])
    assert row["seconds_per_step_spread"] > 0


def test_a_speed_above_what_the_operations_allow_is_noise() -> None:
    """A dense run of 22 seconds beside one of 2, on a machine that was busy meanwhile."""
    found = speed_of([(22.0, 1.4), (2.0, 1.4), (22.0, 1.4)], allowed=1.74)
    assert found.noise is not None
    assert found.noise.startswith("15.71x is above the 1.74x that the operations allow")
    assert str(found) == "noise (15.71)"
    assert speed_of([(1.75, 1.0)], allowed=1.74).noise is None  # within what counts leave out
    assert speed_of([(3.0, 1.0)], allowed=None).noise is None  # compiled


def test_a_speed_whose_pairs_differ_by_more_than_it_does_from_1_is_noise() -> None:
    found = speed_of([(1.0, 1.0), (1.1, 1.0), (1.6, 1.0)], allowed=2.0)
    assert (found.ratio, found.spread) == (pytest.approx(1.1), pytest.approx(0.3))
    assert found.noise == "1.10x is nearer to 1 than its pairs are to each other (interquartile range 0.30)"
    steady = speed_of([(1.40, 1.0), (1.41, 1.0), (1.42, 1.0)], allowed=2.0)
    assert (steady.noise, str(steady)) == (None, "1.41")
    slower = speed_of([(1.0, 2.0), (1.0, 2.1)], allowed=2.0)
    assert slower.noise is None
    assert speed_of([(1.05, 1.0)], allowed=2.0).noise is None  # a single pair has no spread


def test_what_is_noise_is_written_so(pipe: Pipe) -> None:
    timed_pairs = time_pairs(pipe, METHOD, TASK, repeats=2, batch=2)
    row = timed_pairs.row(ideal_speedup=1.2)
    assert row["speedup_noise"].startswith("1.40x is above the 1.20x")
    assert row["transformer_speedup_noise"].startswith("2.00x is above the 1.20x")
    assert row["reached"] is None
    assert replace(timed_pairs, bounded=False).row(1.2)["speedup_noise"] is None  # as of compiled code


def report(seconds: float, selecting: float, full: list[bool]) -> Report:
    steps = tuple(StepReport(i, 0.0, 1, 1, whole, 1.0, 0.0) for i, whole in enumerate(full))
    return Report(steps, 1, seconds, selecting, 1, 1, Macs(1, 1), Macs(1, 1), 0, (), None)


def test_hooks_cost_what_full_steps_take_longer_than_plain_ones() -> None:
    own = Timed(9.0, (3.0, 2.2, 1.0, 2.4), report(8.0, 2.0, [True, True, False, True]))
    pairs = ((Timed(8.0, (2.0, 2.0, 9.0)), own),)
    assert hook_overhead(pairs) == pytest.approx(2.4 / 2.0 - 1)
    assert Timing(pairs, 1, 0).row(1.0)["selection_share"] == 0.25
    none_full = ((pairs[0][0], Timed(9.0, (1.0,), report(1.0, 0.0, [False]))),)
    assert hook_overhead(none_full) is None
    others = ((pairs[0][0], Timed(9.0, (1.0, 1.0), report(1.0, 0.0, [True]))),)
    assert hook_overhead(others) is None


def test_the_pipeline_is_left_as_it_was_after_an_error_too(pipe: Pipe) -> None:
    hooks = len(pipe.transformer._forward_hooks)

    def fail() -> None:
        pipe.scheduler.step(torch.zeros(()))
        raise TypeError("x")

    with pytest.raises(TypeError):
        timed(pipe, fail)
    assert (len(pipe.transformer._forward_hooks), len(pipe.transformer._forward_pre_hooks)) == (hooks, 0)
    assert "step" not in vars(pipe.scheduler)


def test_the_device_is_synchronised_around_a_generation(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_synchronise", lambda *_: pipe.events.append("synchronised"))
    timed(pipe, lambda: pipe(["a"], 1))
    assert pipe.events == ["synchronised", (1, 1, True), "synchronised"]


CPU = torch.device("cpu")


def test_peak_memory_by_hand() -> None:
    kept = torch.zeros(1000)
    with peak_memory(CPU) as peak:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1  # 8,000
        view = second[:10].view(2, 5)
        del first, second
        third = torch.zeros(500)  # the view still holds 4,000: 6,000
        kept.add_(1)
        kept.view(10, 100).t()
        assert view.sum() == 10
        del third
    assert peak.nbytes == 8000
    with peak_memory(CPU) as peak:
        torch.zeros(5000)
        held = torch.zeros(10)
        peak.restart()
        torch.zeros(100)
        del held
    assert peak.nbytes == 440
