"""What is left of a long work, and how that is said."""

from __future__ import annotations

import time

import pytest

from tokenprune.reports.remaining import Remaining, in_words


def test_the_rest_takes_what_the_first_ones_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    remaining = Remaining(4)
    assert (remaining.seconds, str(remaining)) == (None, "0 of 4")
    for passed, seconds, words in ((10, 30, "1 of 4, about 30 s left"), (50, 60, "2 of 4, about 1 min left")):
        now[0] += passed
        remaining.finish_one()
        assert (remaining.seconds, str(remaining)) == (seconds, words)
    remaining.total = 2
    assert str(remaining) == "2 of 2"
    remaining.finish_one()
    assert (remaining.seconds, str(remaining)) == (0, "3 of 3")


def test_nothing_is_said_of_an_unknown_number() -> None:
    remaining = Remaining()
    remaining.finish_one()
    assert (remaining.seconds, str(remaining)) == (None, "")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min")]
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
