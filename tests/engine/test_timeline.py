"""Steps of one generation counted over several models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import ConcurrentUseError, NoisePolicy
from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.step_tracker import CallPosition, StepTracker
from tokenprune.engine.timeline import Timeline
from tokenprune.ops.guidance import BranchKey
from tokenprune.reuse.base import Hold

LATENTS = torch.zeros(1, 4, 8, 8)
TABLE = torch.linspace(1000, 20, 6)


class Model:
    """Takes down what a timeline asks of it."""

    def __init__(self, name: str, nbytes: int = 0) -> None:
        self.name, self.nbytes, self.host_bytes = name, nbytes, 0
        self.asked: list[str] = []
        self.told: list[CallPosition] = []
        self.branches: dict[BranchKey, BranchCache] = {}

    def unwind(self) -> None:
        self.asked.append("unwind")

    def free(self) -> None:
        self.asked.append("free")

    def let_go(self, windows: Collection[str], window: str, position: CallPosition) -> None:
        self.told.append(position)

    def branches_at(self, window: str, generation: object, step: int) -> Mapping[BranchKey, BranchCache]:
        return self.branches if step == 1 else {}


@pytest.fixture
def timeline() -> Timeline:
    made = Timeline(StepTracker)
    for name, nbytes in (("one", 100), ("other", 50)):
        assert made.join(Model(name, nbytes), time_rises=False) is False
    return made


def advance(timeline: Timeline, time: Tensor) -> CallPosition:
    timeline.enter()
    _, position = timeline.advance(time, LATENTS, "", {})
    timeline.leave()
    return position


def test_every_call_moves_it_on_and_is_told_to_all(timeline: Timeline) -> None:
    positions = [advance(timeline, time) for time in TABLE]
    assert [position.step for position in positions] == list(range(6))
    assert [position.remaining for position in positions] == [6, 5, 4, 3, 2, 1]
    assert {id(position.generation) for position in positions} == {id(timeline.latest)}
    assert timeline._members[0].told == timeline._members[1].told == positions
    again = advance(timeline, torch.linspace(900, 20, 4)[0])
    assert again.first_of_generation
    assert again.generation is not positions[0].generation
    assert timeline.generations == 2
    assert timeline.peak_bytes == 150


def test_an_end_is_the_end_for_all(timeline: Timeline) -> None:
    first = advance(timeline, TABLE[0])
    timeline.enter()
    timeline.fail()
    assert [model.asked for model in timeline._members] == [["unwind", "free"]] * 2
    assert advance(timeline, TABLE[1]).step == 0
    timeline.reset()
    assert [model.asked for model in timeline._members] == [["unwind", "free", "free"]] * 2
    assert advance(timeline, TABLE[2]).generation is not first.generation


def test_what_is_handed_on(timeline: Timeline) -> None:
    key, branch = BranchKey(0, (1, 4, 8, 8)), BranchCache(Hold())
    branch.prediction = torch.ones(1, 4, 2)
    timeline._members[0].branches = {key: branch, BranchKey(1, (1, 4, 8, 8)): BranchCache(Hold())}
    found = [timeline.handed_on("", advance(timeline, time)) for time in TABLE[:4]]
    assert [set(each) for each in found] == [set(), set(), {key}, set()]


def test_the_first_model_says_which_way_time_runs() -> None:
    timeline = Timeline(StepTracker)
    assert timeline.join(Model("one"), time_rises=True)
    assert timeline.join(Model("other"), time_rises=False)
    assert [advance(timeline, time).step for time in (0.1, 0.2, 0.3)] == [0, 1, 2]


def test_nothing_joined_yet() -> None:
    timeline = Timeline(StepTracker)
    timeline.reset()
    assert timeline.join(Model("late"), time_rises=False) is False
    assert advance(timeline, TABLE[0]).step == 0


def in_a_thread(run: Callable[[], Any]) -> list[Any]:
    found: list[Any] = []

    def collect() -> None:
        try:
            found.append(run())
        except ConcurrentUseError as error:
            found.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    thread.join()
    return found


def test_threads_take_turns_over_both_models(
    make_model: Callable[[str], nn.Module], predict: Any, make_condition: Any
) -> None:
    """Another thread may not go on with the second expert; it may begin a generation of its own, after this one."""
    pipe = SimpleNamespace(transformer=make_model("sd3"), transformer_2=make_model("sd3-plain"))
    given, noise = make_condition((0,), 5), torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))

    def call(step: int) -> Tensor:
        model = pipe.transformer if step < 3 else pipe.transformer_2
        with torch.no_grad():
            return predict(model, noise, TABLE[step].expand(1), given)

    def generate() -> list[Tensor]:
        return [call(step) for step in range(6)]

    with tokenprune.apply(pipe, NoisePolicy(0.3, 2), guidance="none") as handle:
        expected = generate()
        (other,) = in_a_thread(generate)
        assert all(torch.equal(one, two) for one, two in zip(expected, other, strict=True))
        for step in range(3):
            call(step)
        (refused,) = in_a_thread(lambda: call(3))
        assert isinstance(refused, ConcurrentUseError)
        assert "SD3Transformer2DModel: expected all calls of a generation from one thread" in str(refused)
        assert all(torch.equal(call(step), expected[step]) for step in range(3, 6))
        assert handle.report().generations == 3
