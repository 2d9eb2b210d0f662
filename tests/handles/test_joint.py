"""Reports and traces of several transformers, put together: with exact numbers."""

from __future__ import annotations

import pytest
import torch

from tokenprune import Macs, Report, StepReport, Trace, TraceError
from tokenprune.handles.joint import joint_report, joint_trace


def report(steps: list[tuple[int, int]], macs: int, grid: tuple[int, ...] = (2, 5)) -> Report:
    made = tuple(StepReport(step, 10.0 - step, tokens, 10, tokens == 10, 0.5, 0.25) for step, tokens in steps)
    tokens = sum(step.tokens for step in made)
    dense = 10 * len(made)
    counts = torch.full((1, 10), len(made))
    return Report(made, 1, 0.5 * len(made), 0.25, tokens, dense, Macs(macs, 1), Macs(100, 2), 7, grid, counts, ("so",))


def test_steps_one_after_the_other() -> None:
    parts = {"transformer": report([(0, 10), (1, 3)], 60), "transformer_2": report([(2, 10), (3, 4)], 70)}
    found = joint_report(parts, set(parts), 5, 11)
    assert [(step.step, step.tokens, step.full) for step in found.steps] == [
        (0, 10, True),
        (1, 3, False),
        (2, 10, True),
        (3, 4, False),
    ]
    assert (found.tokens, found.dense_tokens, found.generations, found.cache_bytes) == (27, 40, 5, 11)
    assert (found.macs, found.dense_macs) == (Macs(130, 2), Macs(200, 4))
    assert found.seconds == 2.0
    assert found.token_counts is not None
    assert found.token_counts.tolist() == [[4] * 10]
    assert found.notes == ("transformer: so", "transformer_2: so")
    assert found.transformers == parts


def test_steps_at_the_same_time() -> None:
    parts = {"transformer": report([(0, 10), (1, 3)], 60), "unconditional_transformer": report([(0, 10), (1, 4)], 70)}
    found = joint_report(parts, set(parts), 1, 11)
    assert [(step.step, step.tokens, step.full, step.seconds) for step in found.steps] == [
        (0, 10, True, 1.0),
        (1, 4, False, 1.0),
    ]
    assert (found.tokens, found.dense_tokens) == (14, 20)


def test_one_that_the_latest_generation_did_not_call() -> None:
    parts = {"transformer": report([(0, 10)], 60), "transformer_2": report([(5, 4)], 70)}
    found = joint_report(parts, {"transformer_2"}, 2, 11)
    assert [step.step for step in found.steps] == [5]
    assert found.macs == Macs(70, 1)
    assert set(found.transformers) == set(parts)
    nothing = joint_report(parts, set(), 0, 0)
    assert (nothing.steps, nothing.grid, nothing.token_counts, nothing.mac_ratio) == ((), (), None, 1.0)


def test_token_grids_that_differ() -> None:
    parts = {"transformer": report([(0, 10)], 60), "transformer_2": report([(1, 4)], 70, grid=(10,))}
    assert joint_report(parts, set(parts), 1, 0).grid == (10,)
    with pytest.raises(TraceError, match=r"expected transformers with one token grid, got .*\(2, 5\).*\(10,\)"):
        joint_trace({"transformer": Trace((), (2, 5)), "transformer_2": Trace((), (10,))})
