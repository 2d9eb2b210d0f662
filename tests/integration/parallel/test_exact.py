"""Models that are divided over processes are pruned as on one.

Diffusers' own models differ a little on several ranks, as sums are made in another order. So "equal" means here: within
that difference of one process; and bit for bit what diffusers gives on several ranks at full steps.
"""

from __future__ import annotations

import functools
from typing import Any

import drawing_programs
import programs
import pytest
import torch
from programs import by_context, by_tensors
from ranks import Ranks
from torch.distributed.tensor.parallel import ColwiseParallel

from tokenprune import (
    AttentionRankPolicy,
    CATPolicy,
    DensePolicy,
    Plan,
    RefreshSchedule,
    SelectionPolicy,
    SequentialPolicy,
    Taylor,
)

CAT = CATPolicy(0.5, 2, num_clusters=5)
SKIPPING = Plan(CAT, RefreshSchedule(3, alpha=0.0, warmup_steps=2), Taylor())
FORECAST_KEYS = Plan(CAT, reuse=Taylor(keys=True))
ATTENTION = AttentionRankPolicy(0.5, 2)
TOLERANCE = 1e-5
"""What diffusers' own outputs, of size 1, differ at most between one process and several in single precision."""

DIVISIONS = {"context": by_context, "tensors": by_tensors}
PACKED = pytest.mark.skipif(
    not hasattr(ColwiseParallel(), "src_data_rank"), reason="this torch lacks what diffusers divides packed weights by"
)
BOTH = pytest.mark.parametrize("divide", ["context", pytest.param("tensors", marks=PACKED)])
HOWEVER = {"ring": programs.by_ring, "uneven": programs.by_uneven_context}
"""Ways that serve full and skipped steps alone."""
CASES: dict[str, tuple[str, str, Plan | SelectionPolicy]] = {
    "flux, all tokens": ("context", "flux", DensePolicy()),
    "flux, CAT": ("context", "flux", CAT),
    "flux, forecast keys": ("context", "flux", FORECAST_KEYS),
    "flux, skipped steps": ("context", "flux", SKIPPING),
    "flux2, pictures to edit": ("context", "flux2", CAT),
    "qwenimage, CAT": ("context", "qwenimage", CAT),
    "qwenimage, attention": ("context", "qwenimage", ATTENTION),
    "qwenimage, pictures to edit": ("context", "qwenimage-edit", CAT),
    "wan, CAT": ("context", "wan", CAT),
    "wan, a timestep for each token": ("context", "wan-ti2v", CAT),
    "wan, forecast keys": ("context", "wan", Plan(SequentialPolicy(0.5, 2), reuse=Taylor(keys=True))),
    "chronoedit, CAT": ("context", "chronoedit", CAT),
    "ltx, CAT": ("context", "ltx", CAT),
    "flux, tensors, CAT": ("tensors", "flux", CAT),
    "flux, tensors, forecast keys": ("tensors", "flux", FORECAST_KEYS),
    "flux, tensors, skipped steps": ("tensors", "flux", SKIPPING),
    "flux2, tensors, attention": ("tensors", "flux2", ATTENTION),
    "qwenimage, tensors, CAT": ("tensors", "qwenimage", CAT),
    "qwenimage 2.1, tensors, CAT": ("tensors", "qwenimage-2.1", CAT),
}


def check(alone: programs.Generated, divided: programs.Generated, plain: list[Any]) -> None:
    """What was pruned on all ranks is what was pruned on one; see `programs.alone_and_divided`."""
    of_one, of_all, behind = plain
    for one, other in zip(of_one, of_all, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)
    for one, other in zip(alone.outputs, divided.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)
    assert all(map(torch.equal, alone.computed, divided.computed))
    for computed, plainly, pruned in zip(divided.computed, of_all, divided.outputs, strict=True):
        assert torch.equal(plainly, pruned) is bool(computed.all())
    assert all(map(torch.equal, of_all[:2], behind))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=PACKED if divide == "tensors" else ()) for case, (divide, _, _) in CASES.items()]
)
def test_two_ranks(case: str, ranks: Ranks) -> None:
    divide, name, plan = CASES[case]
    found = ranks(2, programs.alone_and_divided, DIVISIONS[divide], name, plan)
    for alone, divided, plain in found:
        check(alone, divided, plain)
        forecast = isinstance(plan, Plan) and plan.schedule is None  # which takes some numbers for each token, too
        assert alone.keys / 2 <= divided.keys <= (0.55 if forecast else 0.5) * alone.keys
    (_, first, _), (_, second, _) = found
    assert all(map(torch.equal, first.outputs, second.outputs))


@pytest.mark.parametrize(("divide", "world", "heads"), [("ring", 2, 2), ("uneven", 3, 5)])
def test_full_and_skipped_steps_are_served_however_tokens_are_divided(
    divide: str, world: int, heads: int, ranks: Ranks
) -> None:
    for alone, divided, plain in ranks(world, programs.alone_and_divided, HOWEVER[divide], "flux", SKIPPING, heads):
        check(alone, divided, plain)
        assert [computed.sum(1).tolist() for computed in divided.computed] == [[24]] * 2 + [[0]] * 2 + [[24]]


@BOTH
def test_four_ranks(divide: str, ranks: Ranks) -> None:
    for alone, divided, plain in ranks(4, programs.alone_and_divided, DIVISIONS[divide], "flux", CAT, 4):
        check(alone, divided, plain)
        assert divided.keys == alone.keys / 4
        assert divided.cache_bytes - divided.keys == alone.cache_bytes - alone.keys


@pytest.mark.parametrize(
    ("divide", "plan", "options", "expected"),
    [
        ("context", 0.5, {}, {0, 36}),
        pytest.param("tensors", 0.5, {}, {0, 36}, marks=PACKED),
        ("context", CAT, {"negative_prompt": "n", "true_cfg_scale": 3.0}, {18, 36}),
    ],
    ids=["context, recommended", "tensors, recommended", "context, texts of two lengths"],
)
def test_a_pipeline(
    divide: str, plan: SelectionPolicy | float, options: dict[str, Any], expected: set[int], ranks: Ranks
) -> None:
    program = functools.partial(drawing_programs.pictures, **options)
    for alone, tokens, picture, divided, plain in ranks(2, program, DIVISIONS[divide], plan):
        assert divided == tokens
        assert set(tokens) == expected
        torch.testing.assert_close(picture, alone, rtol=0, atol=1e-4)
        assert not torch.allclose(picture, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("divide", "world", "expected"),
    [("context", 2, 8), ("context", 3, 9), pytest.param("tensors", 2, 7, marks=PACKED)],
)
def test_counts_are_rounded_up_to_what_ranks_can_share(divide: str, world: int, expected: int, ranks: Ranks) -> None:
    """Of 24 tokens 7 are asked for; where weights are divided, each rank computes all of them."""
    for found in ranks(world, programs.divided, DIVISIONS[divide], "flux", SequentialPolicy(0.3, 2), world):
        assert [int(computed.sum()) for computed in found.computed] == [24, 24] + [expected] * 3


@BOTH
def test_ranks_compute_what_the_first_one_selects(divide: str, ranks: Ranks) -> None:
    first, second = ranks(2, programs.divided, DIVISIONS[divide], "flux", programs.Ranked())
    for step, computed in enumerate(first.computed):
        assert torch.equal(computed, second.computed[step])
        if step >= 2:
            assert computed[0].nonzero().flatten().tolist() == list(range(step, step + 12))
    assert all(map(torch.equal, first.outputs, second.outputs))


@pytest.mark.parametrize(
    ("divide", "plan", "expected"),
    [
        ("context", CAT, [24, 24, 12, 12, 12]),
        ("context", SKIPPING, [24, 24, 0, 0, 24]),
        pytest.param("tensors", CAT, [24, 24, 12, 12, 12], marks=PACKED),
    ],
    ids=["context", "context, skipped steps", "tensors"],
)
def test_parallelism_that_is_enabled_after_apply(
    divide: str, plan: Plan | SelectionPolicy, expected: list[int], ranks: Ranks
) -> None:
    for rest, tokens, later, fresh, behind in ranks(2, programs.divided_later, DIVISIONS[divide], plan):
        assert rest == [24, 24]  # what was kept before is of no use
        assert tokens == expected
        assert all(map(torch.equal, later, fresh))
        assert all(map(torch.equal, later[:2], behind))


@BOTH
def test_ranks_with_other_latents_are_refused(divide: str, ranks: Ranks) -> None:
    for said in ranks(2, programs.others_latents, DIVISIONS[divide]):
        assert said.startswith("UnsupportedCallError: FluxTransformer2DModel: expected the same latents on all 2 ranks")


@BOTH
def test_reports_count_the_operations_of_all_ranks_together(divide: str, ranks: Ranks) -> None:
    for alone, divided in ranks(2, programs.reports, DIVISIONS[divide], CAT):
        assert (divided.macs, divided.dense_macs, divided.tokens) == (alone.macs, alone.dense_macs, alone.tokens)
        assert 0 < divided.macs.total < divided.dense_macs.total
