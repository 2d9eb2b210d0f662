"""The memory of keys and values: where it stays, and smaller types for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Hold, Plan, Reuse, Selection, Taylor
from tokenprune.ops.static_memory import StaticBuffers
from tokenprune.plans.presets import token_plan
from tokenprune.reuse.key_value import FreshKeys, in_levels

POLICY = CATPolicy(0.3, 3, num_clusters=5)
PLANS = {"cat": Plan(POLICY), "best": token_plan(0.5)}


def addresses(handle: Any) -> dict[str, int]:
    masked = handle._masked
    found = {"clock": masked.sites._clock.data_ptr()}
    for branch in masked.generation.branches.values():
        for path, buffer in branch.buffers.items():
            if buffer.length:
                found |= {f"{path} key": buffer.key.data_ptr(), f"{path} value": buffer.value.data_ptr()}
        found |= {path: kept.output.data_ptr() for path, kept in branch.constants.items()}
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_what_blocks_read_and_write_stays_where_it_is(
    model: nn.Module, plan: str, make_steps: Callable[..., Any]
) -> None:
    """Over steps and generations, as graphs that were captured once need it."""
    with tokenprune.apply(model, PLANS[plan]) as handle:
        steps = iter(make_steps(model, seed=1))
        next(steps)
        before = addresses(handle)
        assert len(before) > 2
        for _ in steps:
            assert addresses(handle) == before
        for _ in make_steps(model, seed=2):
            assert addresses(handle) == before


def indices(handle: Any) -> dict[tuple[str, torch.Size], int]:
    """Addresses of the row indices of the call under plan, by what they are and their shapes; none at a full one."""
    sites = handle._masked.sites
    found: dict[str, Tensor] = {}
    for state in sites.attentions:
        for number, kept in enumerate(state.plan.keys):
            if kept.fresh is not None:
                name = f"{state.site.path} {number}"
                found |= {f"{name} {part}": getattr(kept.fresh, part) for part in ("rows", "chosen", "places")}
                found[f"{name} fresh"] = kept.fresh.selection.index
    for path, block in sites.blocks.items():
        if block.rows is not None:
            found |= {f"{path} {layout}": rows.index for layout, rows in block.rows.by_layout.items()}
            found |= {f"{path} images": block.rows.images.index, f"{path} frames": block.rows.image.index}
    return {(name, index.shape): index.data_ptr() for name, index in found.items()}


@pytest.mark.parametrize("plan", PLANS)
def test_row_indices_stay_where_they_are(model: nn.Module, plan: str, make_steps: Callable[..., Any]) -> None:
    """For each number of computed tokens: pruned steps change what is there."""
    known: dict[tuple[str, torch.Size], int] = {}
    calls: list[dict[tuple[str, torch.Size], int]] = []
    with tokenprune.apply(model, PLANS[plan]) as handle:
        model.proj_out.register_forward_pre_hook(lambda *_: calls.append(indices(handle)))
        for seed in (1, 2):
            for _ in make_steps(model, seed=seed):
                assert all(known.setdefault(name, address) == address for name, address in calls[-1].items())
    assert sum(map(bool, calls)) > 3
    assert len(set(known.values())) > 1


@pytest.mark.parametrize(
    ("reuse", "dtype", "share", "closeness"),
    [
        (Hold(), torch.bfloat16, 0.5, 2e-2),
        (Hold(), torch.int8, 0.25, 2e-2),
        (Hold(), torch.float8_e4m3fn, 0.25, 2e-1),
        (Hold(), torch.float8_e5m2, 0.25, 4e-1),
        (Taylor(1, keys=True), torch.bfloat16, 0.5, 5e-2),
        (Taylor(1, keys=True), torch.float16, 0.5, 5e-2),
    ],
    ids=str,
)
def test_smaller_types(
    model: nn.Module, make_steps: Callable[..., Any], reuse: Reuse, dtype: torch.dtype, share: float, closeness: float
) -> None:
    def draw(cache_dtype: torch.dtype | None) -> tuple[list[Tensor], int]:
        with tokenprune.apply(model, POLICY, reuse=reuse, cache_dtype=cache_dtype) as handle:
            made = list(make_steps(model))
            (branch,) = handle._masked.generation.branches.values()
            return made, sum(kept.nbytes for buffer in branch.buffers.values() if buffer.length for kept in buffer.kept)

    (wanted, whole), (made, small) = draw(None), draw(dtype)
    assert small == share * whole
    assert all(torch.equal(a, b) for a, b in zip(wanted[:3], made[:3], strict=True))
    for a, b in zip(wanted[3:], made[3:], strict=True):
        assert a.dtype == b.dtype
        assert 0 < (a - b).norm() / a.norm() < closeness


def test_numbers_beyond_a_type_are_cut_off() -> None:
    buffer = Hold().start_keys()
    buffer.dtype = torch.float8_e4m3fn
    key = torch.full((1, 1, 2, 16), 1e6)
    buffer.record(key, -key, (0, 2))
    second = FreshKeys.of(Selection(torch.tensor([[1]]), 2), (0, 2), StaticBuffers())
    made_key, made_value = buffer.update(second, key[:, :, :1], -key[:, :, :1])
    assert made_key.dtype == torch.float32
    assert (made_key == 448).all()
    assert (made_value == -448).all()


@given(
    rows=arrays(np.float32, (3, 8), elements=st.floats(-1e4, 1e4, width=32)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_whole_numbers_are_off_by_half_a_level_of_their_row(rows: Any, dtype: torch.dtype) -> None:
    """Beside the rounding of the scale and of what comes back in the model's own type."""
    fresh = torch.from_numpy(rows).to(dtype)
    levels, scale = in_levels(fresh)
    assert levels.dtype == torch.int8
    assert scale.shape == (3, 1)
    off = (levels * scale - fresh).float().abs()
    largest = fresh.float().abs().amax(-1, keepdim=True)
    assert (off <= largest * (0.5 / 127 + 2 * torch.finfo(dtype).eps) + torch.finfo(dtype).tiny).all()


def test_whole_numbers_stay_where_they_are() -> None:
    buffer = Hold().start_keys()
    buffer.dtype = torch.int8
    key = torch.randn(2, 3, 4, 16)
    buffer.record(key, -key, (0, 4))
    places = [tensor.data_ptr() for tensor in (*buffer.kept, *(buffer.scales or ()))]
    second = FreshKeys.of(Selection(torch.tensor([[1, 3], [0, 2]]), 4), (0, 4), StaticBuffers())
    fresh = torch.randn(2, 3, 2, 16) * 5
    made, _ = buffer.update(second, fresh, -fresh)
    expected = key.clone()
    expected[0, :, [1, 3]], expected[1, :, [0, 2]] = fresh[0], fresh[1]
    torch.testing.assert_close(made, expected, atol=0.1, rtol=0)
    buffer.record(key, -key, (0, 4))
    assert [tensor.data_ptr() for tensor in (*buffer.kept, *(buffer.scales or ()))] == places
    assert buffer.nbytes == 2 * key.numel() * (1 + 4 / 16)


@pytest.mark.parametrize(
    ("reuse", "dtype", "message"),
    [
        (Hold(), torch.int16, r"cache_dtype: expected a floating type of at least 8 bits or torch.int8 for Hold\(\)"),
        (Hold(), "fp8", "cache_dtype: expected a floating type of at least 8 bits"),
        (Taylor(1, keys=True), torch.float8_e4m3fn, "of at least 16 bits for Taylor.*such as torch.bfloat16"),
        (Taylor(1, keys=True), torch.int8, "of at least 16 bits for Taylor.*such as torch.bfloat16"),
    ],
)
def test_types_that_cannot_be(model: nn.Module, reuse: Reuse, dtype: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tokenprune.apply(model, POLICY, reuse=reuse, cache_dtype=dtype)
    assert not model._forward_hooks
