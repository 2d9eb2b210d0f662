"""AT-EDM's choice, with exact values and in models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import AttentionRankPolicy, Observation

RANKS = torch.tensor([[0.3, 0.1, 0.05, 0.25, 0.2, 0.1]])
AGES = torch.tensor([[1, 1, 7, 1, 1, 4]], dtype=torch.int32)


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [
        (0.0, [0.3, 0.1, 0.05, 0.25, 0.2, 0.1]),
        (1.0, [0.3, 0.1, 0.35, 0.25, 0.2, 0.4]),
        (0.5, [0.3, 0.1, 0.05 * 7**0.5, 0.25, 0.2, 0.2]),
    ],
)
def test_exact_scores(observe: Callable[..., Observation], staleness: float, expected: list[float]) -> None:
    seen = observe(2, attention=RANKS, age=AGES)
    assert AttentionRankPolicy(staleness=staleness).score(seen, {})[0].tolist() == pytest.approx(expected)


def test_what_is_selected(observe: Callable[..., Observation]) -> None:
    seen = observe(2, attention=RANKS, age=AGES)
    assert AttentionRankPolicy().select(seen, {}).index.tolist() == [[0, 3]]
    assert AttentionRankPolicy(staleness=1.0).select(seen, {}).index.tolist() == [[2, 5]]


def test_the_attended_are_ranked_by_who_attends() -> None:
    """All but 0 attend to 1, and 1 to 0 alone: once propagated 1 leads; twice, 0 has what 1 had."""
    query, key = torch.zeros(1, 1, 6, 2), torch.zeros(1, 1, 6, 2)
    key[..., 1, 0] = key[..., 0, 1] = 50.0
    query[..., 2:, 0] = query[..., 1, 1] = 1.0
    once, twice = (AttentionRankPolicy(iterations=n).weigh_attention(query, key, 1.0)[0] for n in (1, 2))
    assert once.argmax() == 1
    assert twice.argmax() == 0


@pytest.mark.parametrize("known", [{}, {"age": AGES}])
def test_without_attention_by_age(observe: Callable[..., Observation], known: dict[str, Tensor]) -> None:
    chosen = AttentionRankPolicy(staleness=1.0).select(observe(2, **known), {}).index.tolist()
    assert chosen == ([[2, 5]] if known else [[0, 1]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"iterations": 0}, "iterations: expected a whole number of at least 1, got 0"),
        ({"iterations": 1.5}, r"iterations: expected a whole number, got 1\.5"),
        ({"staleness": -1.0}, r"staleness: expected a number of at least 0, got -1\.0"),
        ({"staleness": math.nan}, "staleness: expected a number of at least 0, got nan"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionRankPolicy(**given)


def test_it_starves_tokens_in_every_model_unless_it_may_not(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    """The baseline computes the same 7 of 24 tokens at all 4 pruned steps; with a high exponent all take turns."""
    counts = {}
    for staleness in (0.0, 20.0):
        with tokenprune.apply(model, AttentionRankPolicy(0.3, 3, staleness=staleness)) as handle:
            assert generate(model, seeds=(0, 1), steps=7).isfinite().all()
            counted = handle.report().token_counts
        assert counted is not None
        counts[staleness] = [sorted(row) for row in counted.tolist()]
    assert counts[0.0] == [[3] * 17 + [7] * 7] * 2
    assert counts[20.0] == [[4] * 20 + [5] * 4] * 2
