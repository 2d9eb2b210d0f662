"""Full steps, pruned steps and forecasts in one generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Handle, Hold, RandomPolicy
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import LevelSchedule, ListSchedule, RefreshSchedule

SCHEDULE = RefreshSchedule(every=3, alpha=0.25)
FULL = (0, 3, 6)


def squares(difference: Tensor) -> Tensor:
    """Which tokens, 2 x 2 pixels each, differ at all [B, h, w]."""
    return difference.ne(0).any(1).unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).any(4).any(2)


def computed(handle: Handle) -> list[int]:
    """Tokens of each step, as in `handle.report()`, without counting operations."""
    return [record.tokens for record in handle._masked.generation.records]


@settings(max_examples=6)
@given(seed=st.integers(0, 1000), images=st.integers(1, 3), order=st.integers(1, 2), damped=st.booleans())
def test_full_steps_are_the_plain_model_and_others_compute_exactly_n(
    family: str,
    make_model: Callable[[str], nn.Module],
    make_steps: Callable[..., Any],
    seed: int,
    images: int,
    order: int,
    damped: bool,
) -> None:
    model, rows = make_model(family), []
    steps = make_steps(model, images, steps=8, seed=seed)
    plain = list(steps)
    hook = model.proj_out.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    with tokenprune.apply(model, CATPolicy(num_clusters=4), schedule=SCHEDULE, reuse=Taylor(order, damped)) as handle:
        made = list(steps)
        counts, tokens = handle._masked.generation.history.counts, computed(handle)
    hook.remove()
    assert rows == tokens == [12, 3, 3, 12, 3, 3, 12, 3]
    assert counts.sum(1).tolist() == [sum(rows)] * images
    for i in range(8):
        same = torch.equal(made[i], plain[i])
        assert same == (i in FULL)
    assert all(torch.equal(a, b) for a, b in zip(steps, plain, strict=True))


def test_a_forecast_changes_only_tokens_not_computed(family: str, make_model: Any, make_steps: Any) -> None:
    """Up to the first pruned step both reuses have computed the same; there, they agree on exactly n tokens."""
    model, made = make_model(family), []
    steps, schedule = make_steps(model, images=2), RefreshSchedule(every=3, alpha=0.25, warmup_steps=3)
    for reuse in (Hold(), Taylor(1, damped=False)):
        with tokenprune.apply(model, RandomPolicy(0.25), schedule=schedule, reuse=reuse):
            made.append([steps.call(i)[0] for i in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(made[0][:3], made[1][:3], strict=True))
    differs = squares(made[1][3] - made[0][3])
    assert differs.flatten(1).sum(1).tolist() == [9, 9]


def test_skipped_pruned_and_full_steps_in_one_generation(family: str, make_model: Any, make_steps: Any) -> None:
    """A pruned step after a skipped one chooses and computes as usual; a full step repairs everything."""
    model = make_model(family)
    steps = make_steps(model, images=2)
    plain = list(steps)
    schedule = ListSchedule((1, 1, 0, 0.5, 0, 0.25, 1, 0, 0.5))
    with tokenprune.apply(model, CATPolicy(num_clusters=4), schedule=schedule, reuse=Taylor(1)) as handle:
        made = list(steps)
        assert computed(handle) == [12, 12, 0, 6, 0, 3, 12, 0, 6]
    assert [torch.equal(a, b) for a, b in zip(made, plain, strict=True)] == [i in (0, 1, 6) for i in range(9)]
    assert all(output.isfinite().all() for output in made)


def test_a_level_schedule_follows_the_samplers_table(sd3: nn.Module, make_steps: Any) -> None:
    steps = make_steps(sd3)
    schedule = LevelSchedule(((1, 1.0), (0, 0.0)))
    with tokenprune.apply(sd3, CATPolicy(num_clusters=4), schedule=schedule, reuse=Taylor(1)) as handle:
        list(steps)
        tokens = computed(handle)
    assert tokens == [int(12 * float(time / steps.table[0])) for time in steps.table]
    assert tokens[-1] == 1


def test_last_full_steps_are_the_plain_model(sd3: nn.Module, make_steps: Any) -> None:
    steps = make_steps(sd3)
    plain = list(steps)
    with tokenprune.apply(sd3, CATPolicy(), schedule=RefreshSchedule(9, last_full=2), reuse=Taylor(1)):
        made = list(steps)
    assert [torch.equal(a, b) for a, b in zip(made, plain, strict=True)] == [i in (0, 7, 8) for i in range(9)]
