"""Full steps where they are needed: the budget is met exactly, and gaps follow the forecasts' errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import EvenSchedule, FixedSchedule, PlacedSchedule, Step
from tokenprune.schedule import ForecastError


def run(
    schedule: PlacedSchedule,
    total: int,
    error: Callable[[int], float],
    sizes: tuple[float, ...] | None = None,
    known: bool = True,
    predicts: Literal["noise", "velocity"] | None = None,
) -> list[int]:
    """The full steps of a generation whose forecasts are off by `error(index)` for each step they reach ahead."""
    full: list[int] = []
    errors: list[ForecastError] = []
    sizes = sizes or (1 / total,) * total
    for index in range(total):
        remaining = total - index if known else None
        step = Step(index, 1000.0 - index, 1.0, remaining, sizes if known else None, tuple(full))
        fraction = schedule.fraction(replace(step, errors=tuple(errors), predicts=predicts))
        assert fraction in (0.0, 1.0)
        if fraction:
            if full:
                gap = index - full[-1]
                errors.append(ForecastError(index, gap, error(index) * gap, 1.0))
            full.append(index)
    return full


def gaps_of(full: Sequence[int]) -> list[int]:
    """Distances of full steps, without the first one, which is 1 for the sake of learning."""
    return [later - earlier for earlier, later in pairwise(full[1:])]


def steady(error: float = 0.01) -> Callable[[int], float]:
    """Forecasts that are as far off at every step."""
    return lambda _: error


@given(st.floats(0.02, 1.0), st.integers(1, 60), st.floats(0.0, 3.0))
def test_the_budget_is_met_exactly(budget: float, total: int, power: float) -> None:
    schedule = PlacedSchedule(budget)
    full = run(schedule, total, lambda index: (index + 1) ** -power)
    assert full[0] == 0
    assert len(full) == schedule.full_steps(total) == max(1, int(budget * total + 1e-9))
    assert schedule.prunes(total) is (len(full) < total)


def test_errors_that_stay_small_give_even_gaps() -> None:
    full = run(PlacedSchedule(0.5), 28, steady())
    gaps = gaps_of(full)
    assert max(gaps) - min(gaps) <= 1


def test_errors_that_fall_bring_full_steps_forward() -> None:
    falling = run(PlacedSchedule(0.5), 28, lambda index: 3.0 * index**-1.6)
    even_ones = run(PlacedSchedule(0.5), 28, steady())
    assert falling[:5] == [0, 1, 2, 3, 4]
    assert sum(falling) < sum(even_ones)


def test_gaps_are_short_where_steps_are_large() -> None:
    """Under a shifted schedule the last steps are the largest."""
    sigmas = [index / 28 for index in range(28, 0, -1)]
    shifted = [*(3 * s / (1 + 2 * s) for s in sigmas), 0.0]
    full = run(PlacedSchedule(0.4), 28, steady(), tuple(a - b for a, b in pairwise(shifted)))
    gaps = gaps_of(full)
    assert sum(gaps[: len(gaps) // 2]) > sum(gaps[-(len(gaps) // 2) :])


def test_the_gap_that_nothing_corrects_is_short() -> None:
    full = run(PlacedSchedule(0.25), 28, steady())
    gaps = gaps_of(full)
    assert 27 - full[-1] < max(gaps)


@pytest.mark.parametrize(("total", "full"), [(28, [0, 5, 11, 16, 22]), (50, [0, 5, 11, 16, 22, 27, 33, 38, 44])])
def test_full_steps_lie_evenly_where_they_are_far_apart(total: int, full: list[int]) -> None:
    """Whatever the errors are, and however far the steps go."""
    schedule, sizes = PlacedSchedule(0.19), tuple(float(index) for index in range(total))
    assert run(schedule, total, lambda index: 3.0 * (index + 1) ** -1.6, sizes) == full


@pytest.mark.parametrize(("predicts", "learns"), [(None, [0.2]), ("velocity", [0.2]), ("noise", [])])
def test_how_far_apart_they_may_be_to_learn(predicts: Any, learns: list[float]) -> None:
    """Noise hardly changes at first."""
    found = {share: run(PlacedSchedule(share), 30, steady(), predicts=predicts) for share in (0.19, 0.2, 0.3)}
    assert [share for share, full in found.items() if full[1] == 1] == [*learns, 0.3]


def test_few_full_steps_are_placed_without_learning() -> None:
    both = [0, 3]  # skipping two steps in a row, or the last: four times
    assert run(PlacedSchedule(0.5), 4, steady(1.0)) == both
    assert run(PlacedSchedule(0.25), 4, steady(1.0)) == [0]


def test_steps_that_are_not_known_ahead() -> None:
    """It plans for `steps`, and computes nothing beyond its budget of those."""
    assert len(run(PlacedSchedule(0.5, steps=20), 20, steady(0.1), known=False)) == 10
    assert len(run(PlacedSchedule(0.5, steps=20), 30, steady(0.1), known=False)) == 10


def test_one_schedule_for_each_history() -> None:
    def error(index: int) -> float:
        return 0.3 / (1 + index % 5)

    assert run(PlacedSchedule(0.4), 50, error) == run(PlacedSchedule(0.4), 50, error)


@pytest.mark.parametrize("broken", [0.0, float("inf"), float("nan")])
def test_errors_that_are_no_numbers_change_no_budget(broken: float) -> None:
    assert len(run(PlacedSchedule(0.5), 28, steady(broken))) == 14


@pytest.mark.parametrize("settings", [{"budget": 0.0}, {"budget": 1.1}, {"budget": 0.5, "steps": 0}])
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"budget|steps"):
        PlacedSchedule(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "steps", "said"),
    [
        (0.5, 9, "pictures of fewer than 10 steps change visibly"),
        (0.5, 10, None),
        (0.2, 20, None),
        (0.15, 20, "3 of them are full, less than one in 5: full steps lie evenly then"),
        (0.05, 28, "1 of them is full"),
        (1.0, 4, None),
    ],
)
def test_it_cautions_against_steps_too_far_apart(budget: float, steps: int, said: str | None) -> None:
    schedule = PlacedSchedule(budget)
    caution = schedule.caution(steps)
    if said is None:
        assert caution is None
    else:
        assert caution is not None
        assert caution.startswith(f"under {schedule!r}, {said}")
        assert "; take a larger budget" in caution
    assert EvenSchedule(budget).caution(steps) is None


@pytest.mark.parametrize(
    ("budget", "first", "full"),
    [
        (0.5, 0.0, [0, 2, 4, 7, 9]),
        (0.5, 0.3, [0, 1, 2, 6, 9]),
        (0.5, 1.0, [0, 1, 2, 3, 4]),
        (0.19, 0.5, [0]),
        (1.0, 0.0, list(range(10))),
    ],
)
def test_an_even_schedule_begins_with_its_share_of_full_steps(budget: float, first: float, full: list[int]) -> None:
    schedule = EvenSchedule(budget, first, steps=10)
    for remaining in (True, False):
        steps = [Step(index, 0.0, 1.0, 10 - index if remaining else None) for index in range(10)]
        assert [step.index for step in steps if schedule.fraction(step)] == full
    assert schedule.skips is (budget < 1)
    assert schedule.prunes(10) is (budget < 1)
    assert not schedule.computes_parts


@given(st.floats(0.02, 1.0), st.integers(1, 60), st.floats(0.0, 1.0))
def test_an_even_schedule_meets_its_budget_exactly(budget: float, total: int, first: float) -> None:
    full = EvenSchedule(budget, first).full_steps(total)
    assert len(full) == PlacedSchedule(budget).full_steps(total)
    assert 0 in full
    assert max(full) < total
    assert (total - 1 in full) or full == set(range(len(full)))


def test_bad_settings_of_an_even_schedule() -> None:
    with pytest.raises(ValueError, match=r"first: expected a share of the steps in \[0, 1\], got 1.5"):
        EvenSchedule(0.5, 1.5)
    with pytest.raises(ValueError, match=r"budget: expected a share of the operations in \(0, 1\], got 0"):
        EvenSchedule(0)
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 1, got 0"):
        EvenSchedule(0.5, steps=0)


def test_a_fixed_schedule_is_full_where_it_says() -> None:
    schedule = FixedSchedule((0, 1, 4, 9), steps=10)
    for remaining in (True, False):
        steps = [Step(index, 0.0, 1.0, 10 - index if remaining else None) for index in range(10)]
        assert [step.index for step in steps if schedule.fraction(step)] == [0, 1, 4, 9]
    assert schedule.budget == 0.4
    assert schedule.skips
    assert schedule.prunes(10)
    assert not schedule.computes_parts
    assert not FixedSchedule((0, 1), steps=2).skips


@given(st.sets(st.integers(1, 29)), st.integers(1, 60))
def test_a_fixed_schedule_keeps_its_share_in_other_numbers_of_steps(later: set[int], total: int) -> None:
    schedule = FixedSchedule((0, *sorted(later)), steps=30)
    full = schedule.full_steps(total)
    assert len(full) <= max(1, int(schedule.budget * total + 1e-9))
    assert min(full) == 0
    assert max(full) < total
    if total == 30:
        assert full == {0, *later}


def test_a_fixed_schedule_of_twice_as_many_steps_has_full_ones_where_they_were() -> None:
    assert FixedSchedule((0, 4, 8), steps=9).full_steps(17) == {0, 4, 8, 12, 16}


@pytest.mark.parametrize("full", [(), (1, 2), (0, 2, 2), (0, 10)])
def test_bad_places_of_a_fixed_schedule(full: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="full: expected indices that rise from 0 to at most 9"):
        FixedSchedule(full, steps=10)
