"""Full steps where they are needed: the budget is met exactly, and gaps are even by the noise level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import EvenSchedule, FixedSchedule, PlacedSchedule, Step


def evenly(total: int) -> tuple[float, ...]:
    return tuple(1 - index / total for index in range(total))


def shifted(total: int, shift: float) -> tuple[float, ...]:
    """Noise levels of a rectified flow's sampler."""
    return tuple(shift * sigma / (1 + (shift - 1) * sigma) for sigma in evenly(total))


def run(schedule: PlacedSchedule, sigmas: Sequence[float], known: bool = True) -> list[int]:
    """The full steps of a generation."""
    total, full = len(sigmas), []
    for index in range(total):
        remaining = total - index if known else None
        fraction = schedule.fraction(Step(index, 1000.0 - index, 1.0, remaining, tuple(sigmas) if known else None))
        assert fraction in (0.0, 1.0)
        full += [index] if fraction else []
    return full


@given(st.floats(0.02, 1.0), st.integers(1, 60), st.floats(0.3, 6.0))
def test_the_budget_is_met_exactly(budget: float, total: int, shift: float) -> None:
    schedule = PlacedSchedule(budget)
    full = run(schedule, shifted(total, shift))
    assert full[0] == 0
    assert len(full) == schedule.affordable(total) == max(1, int(budget * total + 1e-9))
    assert schedule.prunes(total) is (len(full) < total)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8, unique=True), st.data())
def test_no_other_places_have_more_even_gaps(sigmas: list[float], data: st.DataObject) -> None:
    total = len(sigmas)
    sigmas.sort(reverse=True)
    full = data.draw(st.integers(1, total))
    behind = [*(passed(sigma) for sigma in sigmas), 1.0]

    def unevenness(places: Sequence[int]) -> float:
        return sum((behind[later] - behind[step]) ** 3 for step, later in pairwise([*sorted(places), total]))

    best = min(unevenness((0, *later)) for later in combinations(range(1, total), full - 1))
    found = PlacedSchedule(full / total).full_steps(total, tuple(sigmas))
    assert len(found) == full
    assert unevenness(tuple(found)) == pytest.approx(best, abs=1e-12)


@given(st.lists(st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.7, 0.9, 1.0]), min_size=1, max_size=40), st.data())
def test_noise_that_rises_or_stays_is_laid_out_too(sigmas: list[float], data: st.DataObject) -> None:
    """Some samplers call the model twice at a time, or begin anew: the way is what sigma goes up and down."""
    full = data.draw(st.integers(1, len(sigmas)))
    found = PlacedSchedule(full / len(sigmas)).full_steps(len(sigmas), tuple(sigmas))
    assert len(found) == full
    assert 0 in found
    assert max(found) < len(sigmas)


def passed(sigma: float) -> float:
    """What is spent of the full steps when a noise level is reached."""
    levels = PlacedSchedule.LEVELS
    for place, (above, below) in enumerate(pairwise(levels)):
        if above >= sigma >= below:
            return (place + (above - sigma) / (above - below)) / 10
    raise AssertionError(sigma)


def test_full_steps_are_where_the_table_says() -> None:
    """With steps as fine as one likes, a tenth of the full ones is spent at each of its levels."""
    sigmas = evenly(2000)
    full = sorted(PlacedSchedule(0.005).full_steps(2000, sigmas))
    assert [sigmas[step] for step in full] == pytest.approx(PlacedSchedule.LEVELS[:-1], abs=1e-3)
    full = sorted(PlacedSchedule(0.01).full_steps(2000, sigmas))
    between = [(above + below) / 2 for above, below in pairwise(PlacedSchedule.LEVELS)]
    assert [sigmas[step] for step in full[1::2]] == pytest.approx(between, abs=1e-3)


def test_full_steps_follow_the_noise_level_and_not_the_index() -> None:
    """Twice as many steps along the same way have their full ones at nearly the same noise levels."""
    few, many = shifted(28, 3.0), shifted(56, 3.0)
    for one, other in zip(run(PlacedSchedule(0.25), few), run(PlacedSchedule(0.125), many), strict=True):
        assert passed(few[one]) == pytest.approx(passed(many[other]), abs=0.05)


def test_a_generation_from_the_middle_spends_its_steps_below_its_first_noise_level() -> None:
    full = run(PlacedSchedule(0.5), [sigma / 2 for sigma in evenly(20)])
    assert len(full) == 10
    gaps = [later - earlier for earlier, later in pairwise(full)]
    assert max(gaps) <= 3


def test_steps_that_are_not_known_ahead() -> None:
    """It plans for `steps` with noise levels that fall evenly, and computes nothing beyond its budget of those."""
    schedule = PlacedSchedule(0.5, steps=20)
    assert run(schedule, evenly(20), known=False) == run(schedule, evenly(20))
    assert run(schedule, evenly(30), known=False) == run(schedule, evenly(20))


def test_it_asks_for_nothing() -> None:
    schedule = PlacedSchedule(0.5)
    assert schedule.skips
    assert not schedule.asks_errors
    assert not schedule.computes_parts
    assert not PlacedSchedule(1.0).skips


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
        (0.05, 28, None),
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
    assert len(full) == PlacedSchedule(budget).affordable(total)
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
