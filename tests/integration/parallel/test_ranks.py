"""The groups of processes that the tests here rest on: they fail with what a rank said, and never wait for ever."""

from __future__ import annotations

import programs
import pytest
import ranks as groups
from ranks import RankFailedError, Ranks


def test_each_rank_gives_what_it_made(ranks: Ranks) -> None:
    assert ranks(2, programs.ranks_and_worlds) == [(0, 2), (1, 2)]


def test_a_rank_that_raises_while_the_other_waits_for_it(ranks: Ranks) -> None:
    with pytest.raises(RankFailedError, match=r"(?s)rank 1 raised\nTraceback.*in fail\b.*ValueError: on purpose"):
        ranks(2, programs.fail)


def test_a_rank_that_dies(ranks: Ranks) -> None:
    with pytest.raises(RankFailedError, match="rank 1 died"):
        ranks(2, programs.die)


def test_ranks_that_wait_for_ever(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PATIENCE", 2.0)
    with pytest.raises(RankFailedError, match=r"ranks \[0, 1\] gave nothing within 2 s"):
        ranks(2, programs.sleep)
