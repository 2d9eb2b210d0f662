"""When tokens were computed, against a list of numbers for each token."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import Selection
from tokenprune.engine.token_history import TokenHistory

TOKENS = 5


@given(
    steps=st.lists(st.one_of(st.none(), st.sets(st.integers(0, TOKENS - 1), min_size=1)), max_size=8),
    errors=st.booleans(),
)
def test_it_counts_what_steps_computed(steps: list[set[int] | None], errors: bool) -> None:
    """None is a full step; every third step is skipped, and nothing is noted."""
    history = TokenHistory(1, TOKENS, torch.device("cpu"))
    counts, last, gap, error = [0] * TOKENS, [-1] * TOKENS, [1] * TOKENS, [0.0] * TOKENS
    noted = False
    for step, chosen in enumerate(steps):
        assert history.age(step).tolist() == [[step - each for each in last]]
        if step % 3 == 2:
            continue
        tokens = range(TOKENS) if chosen is None else sorted(chosen)
        selection = None if chosen is None else Selection(torch.tensor([list(tokens)]), TOKENS)
        told = errors and step > 0  # the first step has no forecast
        off = torch.tensor([[10.0 * step + token for token in tokens]]) if told else None
        history.note(step, selection, off)
        noted = noted or told
        for token in tokens:
            if told:
                gap[token], error[token] = step - last[token], 10.0 * step + token
            counts[token], last[token] = counts[token] + 1, step
        assert history.counts.tolist() == [counts]
        assert history.counts.dtype == history.age(step).dtype == torch.int32
        assert (history.forecast_error is None) == (history.gap is None) == (not noted)
        if history.forecast_error is not None and history.gap is not None:
            assert history.forecast_error.tolist() == [error]
            assert history.gap.tolist() == [gap]
            assert history.gap.dtype == torch.int32
