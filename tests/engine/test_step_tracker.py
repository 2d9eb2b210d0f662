"""Which generation, step and branch a call belongs to, told from timesteps and latents alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import UnsupportedCallError
from tokenprune.engine.step_tracker import CallPosition, StepTracker

FALLING = torch.linspace(1000, 100, 5)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape or (2, 4), generator=torch.Generator().manual_seed(seed))


class Caller:
    """Calls a StepTracker as a sampler does: `calls` calls at every step, new latents at every step."""

    def __init__(self, tracker: StepTracker, fresh: bool, calls: int = 1) -> None:
        self.tracker, self.fresh, self.calls = tracker, fresh, calls

    def generation(self, table: Tensor, seed: int = 0, stop: int | None = None) -> list[CallPosition]:
        positions = []
        for place, time in enumerate(table[:stop]):
            latents = noise(100 * seed + place)
            for _ in range(self.calls):
                timestep = torch.full((2,), float(time)) if self.fresh else time.expand(2)
                positions.append(self.tracker.advance(timestep, latents.clone()))
        return positions


def outline(positions: Sequence[CallPosition]) -> list[tuple[int, int, bool, bool]]:
    return [(m.step, m.branch[0], m.first_of_generation, m.first_of_step) for m in positions]


def expected(steps: int, calls: int = 1) -> list[tuple[int, int, bool, bool]]:
    return [(i, j, i == j == 0, j == 0) for i in range(steps) for j in range(calls)]


both_kinds_of_timesteps = pytest.mark.parametrize("fresh", [False, True], ids=["table", "fresh"])


@both_kinds_of_timesteps
@pytest.mark.parametrize("rises", [False, True])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_generations_of_one_or_more_calls_a_step(fresh: bool, rises: bool, calls: int) -> None:
    caller = Caller(StepTracker(rises), fresh, calls)
    times = (1 - FALLING / 1000) if rises else FALLING
    for seed in range(3):
        positions = caller.generation(times.clone(), seed)
        assert outline(positions) == expected(5, calls)
        assert [m.time for m in positions] == [pytest.approx(float(t)) for t in times for _ in range(calls)]


@both_kinds_of_timesteps
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("times", [[9, 8, 8, 7, 7, 6], [9, 8, 8, 8, 7]], ids=["heun", "third-order"])
def test_repeated_timesteps_are_steps(fresh: bool, calls: int, times: list[float]) -> None:
    caller = Caller(StepTracker(False), fresh, calls)
    for seed in range(2):
        assert outline(caller.generation(torch.tensor(times).float(), seed)) == expected(len(times), calls)


@both_kinds_of_timesteps
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("same_table", [False, True])
def test_a_generation_after_an_interrupted_one(fresh: bool, calls: int, stop: int, same_table: bool) -> None:
    caller = Caller(StepTracker(False), fresh, calls)
    caller.generation(FALLING, 0, stop)
    again = FALLING if same_table else FALLING.clone()
    assert outline(caller.generation(again, 1)) == expected(5, calls)


@both_kinds_of_timesteps
def test_sequential_guidance_stopped_between_its_calls(fresh: bool) -> None:
    """The second call of a later step never came; the next generation is seen all the same."""
    tracker = StepTracker(False)
    caller = Caller(tracker, fresh, 2)
    caller.generation(FALLING, 0, 2)
    time = FALLING[2]
    tracker.advance(torch.full((2,), float(time)) if fresh else time.expand(2), noise(7))
    assert outline(caller.generation(FALLING.clone(), 1)) == expected(5, 2)


@both_kinds_of_timesteps
def test_generations_of_a_single_step(fresh: bool) -> None:
    caller = Caller(StepTracker(False), fresh)
    table = torch.tensor([1000.0, 0.0])
    for seed in range(3):
        assert outline(caller.generation(table, seed, stop=1)) == expected(1)


@both_kinds_of_timesteps
@pytest.mark.parametrize(
    "other",
    [noise(1, 3, 4), noise(1, 2, 5), noise(1).double(), noise(1).to("meta")],
    ids=["B", "shape", "dtype", "device"],
)
def test_other_latents_start_a_generation(fresh: bool, other: Tensor) -> None:
    tracker = StepTracker(False)
    Caller(tracker, fresh).generation(FALLING, 0, 3)
    time = FALLING[3]
    position = tracker.advance(torch.full((2,), float(time)) if fresh else time.expand(2), other)
    assert (position.step, position.first_of_generation, position.first_of_step) == (0, True, True)


BATCHES = [(4, 2), (2, 4), (2, 1), (1, 2)]


def advance_with_batches(
    tracker: StepTracker, batches: Sequence[int], fresh: bool, halves: bool = True
) -> list[CallPosition]:
    """A call for each batch, at the steps of FALLING; every image of a batch in it `halves` times, if it is even."""
    positions = []
    for place, batch in enumerate(batches):
        again = 2 if halves and batch % 2 == 0 else 1
        latents = torch.cat([noise(place, batch // again, 4)] * again)
        time = FALLING[place]
        positions.append(tracker.advance(torch.full((2,), float(time)) if fresh else time.expand(2), latents))
    return positions


@both_kinds_of_timesteps
@pytest.mark.parametrize(("first", "second"), BATCHES)
def test_a_guidance_half_that_comes_or_goes_is_another_branch(fresh: bool, first: int, second: int) -> None:
    positions = advance_with_batches(StepTracker(False), [first, first, second, second, first], fresh)
    assert outline(positions) == expected(5)
    assert [m.branch.shape[0] for m in positions] == [first, first, second, second, first]


@both_kinds_of_timesteps
@pytest.mark.parametrize(("first", "second"), BATCHES)
def test_another_number_of_images_starts_a_generation(fresh: bool, first: int, second: int) -> None:
    for tracker, halves in ((StepTracker(False), False), (StepTracker(False, halves=False), True)):
        positions = advance_with_batches(tracker, [first, first, second, second], fresh, halves)
        assert [m.step for m in positions] == [0, 1, 0, 1]


def test_a_third_of_a_batch_starts_a_generation() -> None:
    positions = advance_with_batches(StepTracker(False), [6, 6, 2, 2], fresh=False)
    assert [m.step for m in positions] == [0, 1, 0, 1]


@both_kinds_of_timesteps
def test_calls_that_join_in_are_branches_if_they_share_the_latents(fresh: bool) -> None:
    tracker, found = StepTracker(False), []
    for place, calls in enumerate([1, 1, 2, 3, 1]):
        latents, time = noise(place), FALLING[place]
        for _ in range(calls):
            found.append(tracker.advance(torch.full((2,), float(time)) if fresh else time.expand(2), latents))
            latents = latents.clone()
    assert [(m.step, m.branch.order) for m in found] == [
        (i, j) for i, c in enumerate([1, 1, 2, 3, 1]) for j in range(c)
    ]


def test_latents_that_a_sampler_changes_in_place_are_another_step() -> None:
    tracker, latents = StepTracker(False), noise(0)
    with torch.inference_mode():
        steps = [tracker.advance(time, latents.add_(1)).step for time in (9.0, 8.0, 8.0, 7.0)]
    assert steps == [0, 1, 2, 3]


@both_kinds_of_timesteps
def test_named_calls_keep_their_branches(fresh: bool) -> None:
    """The call in between stops and comes back; the last one is the same branch all the while."""
    tracker, found = StepTracker(False), []
    for place, names in enumerate([("cond", "uncond", "skip"), ("cond", "skip"), ("cond", "uncond", "skip")]):
        latents, time = noise(place), FALLING[place]
        for name in names:
            timestep = torch.full((2,), float(time)) if fresh else time.expand(2)
            found.append(tracker.advance(timestep, latents, name))
    assert [m.step for m in found] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert {m.branch for m in found} == {(0, (2, 4), name) for name in ("cond", "uncond", "skip")}


def test_reset_starts_a_generation() -> None:
    tracker = StepTracker(False)
    caller = Caller(tracker, fresh=True)
    caller.generation(FALLING, 0, 3)
    tracker.reset()
    assert outline([tracker.advance(float(FALLING[3]), noise(0))]) == [(0, 0, True, True)]


@pytest.mark.parametrize("rises", [False, True])
def test_the_direction_of_time(rises: bool) -> None:
    tracker = StepTracker(rises)
    steps = [tracker.advance(time, noise(i)).step for i, time in enumerate([0.5, 0.6, 0.7, 0.2])]
    assert steps == ([0, 1, 2, 0] if rises else [0, 0, 0, 1])


def test_branches_of_other_shapes_within_a_step() -> None:
    tracker = StepTracker(False)
    calls = [(place, batch) for place in range(3) for batch in (2, 1)]
    shapes = [tracker.advance(FALLING[place].expand(batch), noise(place, batch, 4)) for place, batch in calls]
    assert outline(shapes) == [(i, 0, i == 0 and j == 0, j == 0) for i in range(3) for j in range(2)]
    assert [m.branch[1] for m in shapes] == [(2, 4), (1, 4)] * 3


@pytest.mark.parametrize("timestep", [5, 5.0, torch.tensor(5), torch.tensor([5.0]), torch.tensor([5.0, 5.0])])
def test_timesteps_of_any_kind(timestep: Tensor | float) -> None:
    assert StepTracker(False).advance(timestep, noise(0)).time == 5.0


def test_an_empty_timestep() -> None:
    with pytest.raises(UnsupportedCallError, match="timestep: expected at least one value, got an empty tensor"):
        StepTracker(False).advance(torch.empty(0), noise(0))


def test_inference_tensors() -> None:
    tracker = StepTracker(False)
    with torch.inference_mode():
        table = torch.linspace(1000, 100, 5)
        positions = [tracker.advance(time.expand(2), noise(i)) for i, time in enumerate(table)]
    assert outline(positions) == expected(5)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 3), st.booleans(), st.booleans())
def test_any_falling_table(gaps: list[int], calls: int, fresh: bool, rises: bool) -> None:
    times = 1000 - torch.tensor(gaps).cumsum(0).float()
    times = torch.cat([times, times[-1:] - 1])
    caller = Caller(StepTracker(rises), fresh, calls)
    for seed in range(2):
        positions = caller.generation(-times.clone() if rises else times.clone(), seed)
        assert outline(positions) == expected(len(times), calls)
