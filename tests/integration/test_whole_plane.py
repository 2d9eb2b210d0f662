"""What must hold for every policy with every schedule and every forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    AttentionRankPolicy,
    BudgetSchedule,
    CATPolicy,
    ClusterCorrection,
    ClusterRandomPolicy,
    ErrorControlledPolicy,
    Hold,
    LevelSchedule,
    ListSchedule,
    NoisePolicy,
    NoiseStalenessPolicy,
    Plan,
    RandomPolicy,
    RefreshSchedule,
    RegionAdaptivePolicy,
    SequentialPolicy,
    Step,
    Taylor,
    TocaPolicy,
    WarmupSchedule,
)

STEPS, TOKENS = 8, 12
POLICIES = (
    AttentionRankPolicy(staleness=1.0),
    CATPolicy(num_clusters=4),
    CATPolicy.published(),
    ClusterRandomPolicy(num_clusters=3),
    ErrorControlledPolicy(),
    NoisePolicy(),
    NoiseStalenessPolicy(),
    RandomPolicy(),
    RegionAdaptivePolicy(),
    SequentialPolicy(),
    TocaPolicy(),
)
SCHEDULES = (
    WarmupSchedule(0.3, 3),
    WarmupSchedule(0.5, 1, last_full=1),
    RefreshSchedule(3, 0.25),
    RefreshSchedule(2),
    ListSchedule((1, 0.5, 0, 1, 0.1, 0.9)),
    LevelSchedule(((1, 1.0), (0.5, 0.2), (0, 0.6))),
    BudgetSchedule(0.5),
)
REUSES = (
    Hold(),
    Taylor(1),
    Taylor(2, damped=False),
    Taylor(1, keys=True),
    ClusterCorrection(num_clusters=3),
    ClusterCorrection(Taylor(1, keys=True), num_clusters=3, memory=0.5),
)

plans = st.builds(Plan, st.sampled_from(POLICIES), st.sampled_from(SCHEDULES), st.sampled_from(REUSES))


def counts(plan: Plan, table: Tensor) -> list[int]:
    """Tokens of every step, from the schedule alone."""
    assert plan.schedule is not None
    levels = [float(time / table[0]) for time in table]
    steps = [Step(i, float(time), levels[i], len(table) - i) for i, time in enumerate(table)]
    return [plan.schedule.count(step, TOKENS) for step in steps]


@settings(max_examples=25)
@given(plan=plans, seed=st.integers(0, 1000), images=st.integers(1, 3))
def test_every_plan_keeps_the_engines_promises(
    family: str,
    make_model: Callable[[str], nn.Module],
    make_steps: Callable[..., Any],
    plan: Plan,
    seed: int,
    images: int,
) -> None:
    """Full steps are the plain model, n tokens are computed, an image depends on itself alone, and nothing is left."""
    model = make_model(family)
    steps = make_steps(model, images, steps=STEPS, seed=seed)
    plain, expected = list(steps), counts(plan, steps.table)
    with tokenprune.apply(model, plan) as handle:
        made = list(steps)
        assert [step.tokens for step in handle.report().steps] == expected
        history = handle._masked.generation.history
        assert history is not None
        assert history.counts.sum(1).tolist() == [sum(expected)] * images
        for step, count in enumerate(expected):
            assert torch.equal(made[step], plain[step]) or count < TOKENS, step
        assert all(output.isfinite().all() for output in made)
        again = list(steps)
        assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
        alone = list(make_steps(model, 1, steps=STEPS, seed=seed))
        for output, single in zip(made, alone, strict=True):
            torch.testing.assert_close(output[:1], single, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(steps, plain, strict=True))


@settings(max_examples=12)
@given(plan=plans)
def test_memory_does_not_grow_with_the_number_of_steps(
    make_model: Callable[[str], nn.Module], make_steps: Callable[..., Any], plan: Plan
) -> None:
    sd3_model, held = make_model("sd3"), []
    for steps in (8, 16):
        with tokenprune.apply(sd3_model, plan) as handle:
            list(make_steps(sd3_model, 1, steps=steps))
            held.append(handle.report().cache_bytes)
    assert held[1] <= held[0]
