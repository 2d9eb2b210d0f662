"""How many tokens each step computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import Schedule
from tokenprune.schedule import (
    BudgetSchedule,
    CountSchedule,
    LevelSchedule,
    ListSchedule,
    RefreshSchedule,
    Step,
    WarmupSchedule,
    tokens_at,
)

fractions = st.floats(0, 1)


def at(index: int, level: float = 0.5, remaining: int | None = None) -> Step:
    return Step(index, 500.0, level, remaining)


def run(schedule: Schedule, steps: int, known: bool = True) -> list[float]:
    """Fractions of a whole generation, its number of steps known ahead or not."""
    return [schedule.fraction(at(i, 1 - i / steps, steps - i if known else None)) for i in range(steps)]


def test_warmup() -> None:
    assert run(WarmupSchedule(0.3, 2), 5) == [1, 1, 0.3, 0.3, 0.3]
    assert run(WarmupSchedule(0.3, 9), 3) == [1, 1, 1]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (RefreshSchedule(3), [1, 0, 0, 1, 0, 0, 1, 0]),
        (RefreshSchedule(2, 0.25), [1, 0.25, 1, 0.25, 1, 0.25, 1, 0.25]),
        (RefreshSchedule(3, 0.5, warmup_steps=2), [1, 1, 0.5, 0.5, 1, 0.5, 0.5, 1]),
        (RefreshSchedule(4, 0.0, warmup_steps=3), [1, 1, 1, 0, 0, 0, 1, 0]),
        (RefreshSchedule(1), [1] * 8),
    ],
)
def test_refresh(schedule: RefreshSchedule, expected: list[float]) -> None:
    assert run(schedule, 8) == expected


@pytest.mark.parametrize("schedule", [WarmupSchedule(0.3, 1, last_full=2), RefreshSchedule(9, 0.3, last_full=2)])
def test_last_full_needs_to_know_how_many_steps_remain(schedule: Schedule) -> None:
    assert run(schedule, 5) == [1, 0.3, 0.3, 1, 1]
    assert run(schedule, 5, known=False) == [1, 0.3, 0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("count", "least", "expected"),
    [(5, 1, 5), (1, 1, 1), (1, 2, 2), (2, 2, 2), (0, 2, 0), (8, 2, 8), (None, 2, 8), (3, 9, 8)],
)
def test_a_model_that_cannot_compute_fewer(count: int | None, least: int, expected: int) -> None:
    """A skipped step stays one, and a picture of fewer tokens is computed whole."""
    assert tokens_at(CountSchedule([count]), at(0), 8, least) == expected


@pytest.mark.parametrize(
    ("count", "least", "expected"), [(5, 1, 6), (6, 1, 6), (1, 1, 3), (1, 4, 6), (0, 1, 0), (7, 1, 8), (None, 1, 8)]
)
def test_counts_that_are_multiples(count: int | None, least: int, expected: int) -> None:
    """Rounded up; all of them need be none."""
    assert tokens_at(CountSchedule([count]), at(0), 8, least, multiple=3) == expected


def test_a_list_repeats_its_last() -> None:
    assert run(ListSchedule((1, 0.5, 0, 0.2)), 6) == [1, 0.5, 0, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    ("level", "expected"),
    [(1.2, 1.0), (1.0, 1.0), (0.75, 0.8), (0.5, 0.6), (0.3, 0.4), (0.1, 0.2), (0.05, 0.1), (0.0, 0.0), (-0.1, 0.0)],
)
def test_level_lies_on_the_line_through_the_points(level: float, expected: float) -> None:
    schedule = LevelSchedule(((1.0, 1.0), (0.5, 0.6), (0.1, 0.2), (0.0, 0.0)))
    assert schedule.fraction(at(3, level)) == pytest.approx(expected)


def test_level_may_jump() -> None:
    schedule = LevelSchedule(((1, 1.0), (0.5, 0.8), (0.5, 0.2), (0, 0.2)))
    assert schedule.fraction(at(1, 0.75)) == pytest.approx(0.9)
    assert schedule.fraction(at(1, 0.49)) == pytest.approx(0.2)


def test_level_warms_up() -> None:
    schedule = LevelSchedule(((1, 0.5), (0, 0.5)), warmup_steps=2)
    assert run(schedule, 4) == [1, 1, 0.5, 0.5]


@given(
    points=st.lists(st.tuples(fractions, fractions), max_size=4),
    ends=st.tuples(fractions, fractions),
    levels=st.lists(fractions, min_size=1),
)
def test_level_stays_between_neighbours(
    points: list[tuple[float, float]], ends: tuple[float, float], levels: list[float]
) -> None:
    whole = ((1.0, ends[0]), *sorted(points, reverse=True), (0.0, ends[1]))
    schedule = LevelSchedule(whole)
    for level in levels:
        above = min(high for high, _ in whole if high >= level)
        below = max(low for low, _ in whole if low <= level)
        near = [fraction for point, fraction in whole if point in (above, below)]
        assert min(near) - 1e-9 <= schedule.fraction(at(1, level)) <= max(near) + 1e-9


@pytest.mark.parametrize(
    ("fraction", "tokens", "expected"),
    [
        (1, 7, 7),
        (0.5, 7, 3),
        (0.25, 64, 16),
        (0.01, 7, 1),
        (1e-9, 7, 1),
        (0, 7, 0),
        (0.999, 7, 6),
        (1, 1, 1),
        (0.5, 1, 1),
    ],
)
def test_count_by_hand(fraction: float, tokens: int, expected: int) -> None:
    assert ListSchedule((1, fraction)).count(at(1), tokens) == expected


@given(fraction=fractions, tokens=st.integers(1, 5000))
def test_count_is_within_one_of_the_fraction(fraction: float, tokens: int) -> None:
    count = ListSchedule((1, fraction)).count(at(1), tokens)
    assert (count == 0) == (fraction == 0)
    assert count == tokens or count <= max(1, fraction * tokens) < count + 1 or count == 0


@pytest.mark.parametrize(
    ("schedule", "skips"),
    [
        (WarmupSchedule(0.1, 1), False),
        (RefreshSchedule(2), True),
        (RefreshSchedule(2, 0.1), False),
        (RefreshSchedule(1), False),
        (ListSchedule((1, 0.5)), False),
        (ListSchedule((1, 0.5, 0)), True),
        (LevelSchedule(((1, 1), (0, 0.1))), False),
        (LevelSchedule(((1, 1), (0, 0))), True),
    ],
)
def test_skips(schedule: Schedule, skips: bool) -> None:
    assert schedule.skips is skips


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmupSchedule(0, 1), r"alpha: expected a fraction of image tokens in \(0, 1\], got 0"),
        (lambda: WarmupSchedule(1.1, 1), r"alpha: .*got 1.1"),
        (lambda: WarmupSchedule(float("nan"), 1), r"alpha: .*got nan"),
        (lambda: WarmupSchedule(0.5, 0), r"warmup_steps: expected a whole number of at least 1, got 0"),
        (lambda: WarmupSchedule(0.5, 1.0), r"warmup_steps: .*got 1.0"),
        (lambda: WarmupSchedule(0.5, 1, -1), r"last_full: expected a whole number of at least 0, got -1"),
        (lambda: RefreshSchedule(0), r"every: expected a whole number of at least 1, got 0"),
        (lambda: RefreshSchedule(2, -0.1), r"alpha: expected a fraction of image tokens in \[0, 1\], got -0.1"),
        (lambda: RefreshSchedule(2, warmup_steps=0), r"warmup_steps: .*got 0"),
        (lambda: RefreshSchedule(2, last_full="1"), r"last_full: .*got '1'"),
        (lambda: ListSchedule(()), r"fractions: expected a list that starts with a full step \(1\), got \(\)"),
        (lambda: ListSchedule((0.5, 1)), r"fractions: .*got \(0.5, 1\)"),
        (lambda: ListSchedule((1, 2)), r"fractions: .*\[0, 1\], got 2"),
        (lambda: LevelSchedule(((1, 1),)), r"points: expected levels that fall from 1 to 0, got \[1\]"),
        (lambda: LevelSchedule(((0, 1), (1, 1))), r"points: .*got \[0, 1\]"),
        (lambda: LevelSchedule(((1, 1), (0.5, 0.2))), r"points: .*got \[1, 0.5\]"),
        (lambda: LevelSchedule(((1, 1), (0.2, 1), (0.5, 1), (0, 1))), r"points: .*got \[1, 0.2, 0.5, 0\]"),
        (lambda: LevelSchedule(((1, 1), (0, -0.5))), r"points: .*\[0, 1\], got -0.5"),
        (lambda: LevelSchedule(((1, 1), (0, 0)), 0), r"warmup_steps: .*got 0"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


@given(
    schedule=st.one_of(
        st.builds(WarmupSchedule, fractions.filter(bool), st.integers(1, 5), st.integers(0, 3)),
        st.builds(RefreshSchedule, st.integers(1, 4), fractions, st.integers(1, 4), st.integers(0, 3)),
        st.builds(ListSchedule, st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=8).map(lambda f: (1.0, *f))),
        st.builds(BudgetSchedule, st.floats(0.1, 1), every=st.sampled_from([None, 2, 3])),
        st.just(LevelSchedule(((1.0, 1.0), (0.5, 0.3), (0.0, 1.0)), 3)),
    ),
    steps=st.integers(1, 12),
    known=st.booleans(),
)
def test_what_comes_next_is_foretold(schedule: Schedule, steps: int, known: bool) -> None:
    """No step is pruned after one that is said to be followed by a full one; by index it is known exactly."""
    found = run(schedule, steps, known)
    for index, fraction in enumerate(found[1:]):
        foretold = schedule.may_prune_after(at(index, 1 - index / steps, steps - index if known else None))
        assert foretold >= (fraction < 1)
        assert foretold == (fraction < 1) or isinstance(schedule, LevelSchedule)
    assert not (known and schedule.may_prune_after(at(steps - 1, 1 / steps, 1)))


def test_a_schedule_that_knows_nothing_of_the_next_step_expects_it_to_be_pruned() -> None:
    class Own(Schedule):
        def fraction(self, step: Step) -> float:
            return 1.0

    assert Own().may_prune_after(at(0))
    assert Own().may_prune_after(at(0, remaining=2))
    assert not Own().may_prune_after(at(0, remaining=1))
