"""Diffusers' context parallelism (Ulysses), on groups of processes of the CPU.

Diffusers' own models differ a little on several ranks, as attention sums up the keys in another order. So "equal" means
here: within that difference of one process; and bit for bit what diffusers gives on several ranks at full steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import programs
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models._modeling_parallel import ContextParallelOutput

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
TOLERANCE = 1e-5
"""What diffusers' own outputs, of size 1, differ at most between one process and several in single precision."""

CASES: dict[str, tuple[str, Plan | SelectionPolicy]] = {
    "flux, all tokens": ("flux", DensePolicy()),
    "flux, CAT": ("flux", CAT),
    "flux, forecast keys": ("flux", Plan(CAT, reuse=Taylor(keys=True))),
    "flux, skipped steps": ("flux", Plan(CAT, RefreshSchedule(3, alpha=0.0, warmup_steps=2), Taylor())),
    "qwenimage, CAT": ("qwenimage", CAT),
    "qwenimage, attention": ("qwenimage", AttentionRankPolicy(0.5, 2)),
    "qwenimage, pictures to edit": ("qwenimage-edit", CAT),
    "wan, CAT": ("wan", CAT),
    "wan, a timestep for each token": ("wan-ti2v", CAT),
    "wan, forecast keys": ("wan", Plan(SequentialPolicy(0.5, 2), reuse=Taylor(keys=True))),
    "ltx": ("ltx", CAT),
    "flux2": ("flux2", CAT),
}
Ranks = Callable[..., list[Any]]


def check(alone: programs.Generated, divided: programs.Generated, plain: list[Any], degree: int) -> None:
    """What was pruned on all ranks is what was pruned on one; see `programs.alone_and_divided`."""
    of_one, of_all, behind = plain
    for one, other in zip(of_one, of_all, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)
    for one, other in zip(alone.outputs, divided.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)
    assert all(map(torch.equal, alone.computed, divided.computed))
    for computed, plainly, pruned in zip(divided.computed, of_all, divided.outputs, strict=True):
        assert torch.equal(plainly, pruned) is bool(computed.all())
    assert all(map(torch.equal, of_all, behind))
    assert divided.macs == alone.macs


@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case: str, ranks: Ranks) -> None:
    name, plan = CASES[case]
    found = ranks(2, programs.alone_and_divided, name, plan)
    for alone, divided, plain in found:
        check(alone, divided, plain, 2)
        forecast = isinstance(plan, Plan) and plan.schedule is None  # which takes some numbers for each token, too
        assert alone.keys / 2 <= divided.keys <= (0.55 if forecast else 0.5) * alone.keys
    (_, first, _), (_, second, _) = found
    assert all(map(torch.equal, first.outputs, second.outputs))


def test_four_ranks(ranks: Ranks) -> None:
    for alone, divided, plain in ranks(4, programs.alone_and_divided, "flux", CAT, 4):
        check(alone, divided, plain, 4)
        assert divided.keys == alone.keys / 4
        assert divided.cache_bytes - divided.keys == alone.cache_bytes - alone.keys


def test_the_recommended_plan(ranks: Ranks) -> None:
    for alone, tokens, picture, divided, plain in ranks(2, programs.pictures, 0.5):
        assert divided == tokens
        assert set(tokens) == {0, 24}
        torch.testing.assert_close(picture, alone, rtol=0, atol=1e-4)
        assert not torch.allclose(picture, plain, atol=1e-2)


@pytest.mark.parametrize(("world", "expected"), [(2, 8), (3, 9)])
def test_counts_are_rounded_up_to_what_ranks_can_share(world: int, expected: int, ranks: Ranks) -> None:
    """Of 24 tokens 7 are asked for."""
    for divided in ranks(world, programs.divided, "flux", SequentialPolicy(0.3, 2), world):
        assert [int(computed.sum()) for computed in divided.computed] == [24, 24] + [expected] * 4


def test_ranks_compute_what_the_first_one_selects(ranks: Ranks) -> None:
    first, second = ranks(2, programs.divided, "flux", programs.Ranked())
    for step, computed in enumerate(first.computed):
        assert torch.equal(computed, second.computed[step])
        if step >= 2:
            assert computed[0].nonzero().flatten().tolist() == list(range(step, step + 12))
    assert all(map(torch.equal, first.outputs, second.outputs))


def test_parallelism_that_is_enabled_after_apply(ranks: Ranks) -> None:
    for later, tokens, fresh, behind in ranks(2, programs.divided_later, CAT):
        assert tokens == [24, 24, 12, 12, 12, 12]
        assert all(map(torch.equal, later, fresh))
        assert all(map(torch.equal, later[:2], behind[:2]))


def test_ranks_with_other_latents_are_refused(ranks: Ranks) -> None:
    for said in ranks(2, programs.others_latents):
        assert said.startswith("UnsupportedCallError: FluxTransformer2DModel: expected the same latents on all 2 ranks")


AT_THE_END = {**FluxTransformer2DModel._cp_plan, "norm_out": ContextParallelOutput(gather_dim=1, expected_dims=3)}
REFUSED: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any], str]] = {
    "ring": ("flux", None, {"ring_degree": 2}, r"ring attention \(ring_degree=2\) .* logarithms .*ulysses_degree=2\)"),
    "anything": (
        "flux",
        None,
        {"ulysses_degree": 2, "ulysses_anything": True},
        "ulysses_anything .* different lengths",
    ),
    "joined twice": ("flux", AT_THE_END, {"ulysses_degree": 2}, "its plan joins the tokens at norm_out, proj_out; exp"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pruned_is_refused(case: str, ranks: Ranks) -> None:
    name, plan, degrees, reason = REFUSED[case]
    for early, left, late, behind in ranks(2, programs.refused, name, plan, degrees):
        assert left == behind == []
        for said in (early, late):
            assert said.startswith("HookConflictError: FluxTransformer2DModel: is divided over several devices (enable")
            assert re.search(reason, said), said
