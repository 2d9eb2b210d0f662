"""A limit to the memory of caches: where it is reached, what is said, and that nothing stays behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CacheLimitError, CATPolicy, Plan, Reuse, Taylor
from tokenprune.engine.cache_limit import UNITS, bytes_of
from tokenprune.ops.guidance import Guidance
from tokenprune.reuse.key_value import KeyValueBuffer
from tokenprune.units import memory_in_words

PLANS = {
    "held": Plan(CATPolicy(0.3, 3, num_clusters=5)),
    "forecast": Plan(CATPolicy(0.3, 3, num_clusters=5), reuse=Taylor(keys=True)),
}


def need(model: nn.Module, plan: Plan, generate: Callable[..., Tensor], **wanted: Any) -> int:
    with tokenprune.apply(model, plan) as handle:
        generate(model, **wanted)
        return handle.report().cache_bytes


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_what_is_needed_is_allowed_and_a_byte_less_is_not(
    plan: Plan, guidance: str, model: nn.Module, generate: Callable[..., Tensor]
) -> None:
    whole = need(model, plan, generate, guidance=guidance)
    with tokenprune.apply(model, plan):
        expected = generate(model, guidance=guidance)
    with tokenprune.apply(model, plan, cache_limit=whole) as handle:
        assert torch.equal(generate(model, guidance=guidance), expected)
        assert handle.report().cache_bytes == whole
    with tokenprune.apply(model, plan, cache_limit=whole - 1) as handle:
        with pytest.raises(
            CacheLimitError, match=r"the caches would hold .* with this call, expected at most cache_li"
        ):
            generate(model, guidance=guidance)
        assert handle._timeline.nbytes == 0


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_keys_and_values_are_refused_before_their_memory_is_taken(
    plan: Plan, sd3: nn.Module, generate: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    limit = need(sd3, plan, generate, stop=1) // 2
    with tokenprune.apply(sd3, plan, cache_limit=limit) as handle:
        fail = handle._timeline.fail

        def noting() -> None:
            most.append(handle._timeline.nbytes)
            fail()

        monkeypatch.setattr(handle._timeline, "fail", noting)
        with pytest.raises(CacheLimitError) as caught:
            generate(sd3)
    assert 0 < most[0] <= limit
    message = (
        r"transformer_blocks\.\d\.attn2?: the caches would hold about [\d.]+ KiB of memory with this call, expected at "
        r"most cache_limit = [\d.]+ KiB; draw fewer or smaller pictures in a call, keep keys and values in a smaller "
        r"type with apply\(\.\.\., cache_dtype=\.\.\.\), keep keys and values in host memory with "
        r"apply\(\.\.\., cache_device=\"cpu\"\), or take a plan that skips whole steps, tokenprune\.plan\(pipe\), "
        r"which keeps none"
    )
    assert re.fullmatch(message, str(caught.value))


def test_the_need_that_is_told_is_that_of_all_modules(pixart: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(pixart, PLANS["held"]) as handle:
        generate(pixart, stop=1)
        (branch,) = handle._masked.generation.branches.values()
        keys = sum(buffer.nbytes for buffer in branch.buffers.values())
    with (
        tokenprune.apply(pixart, PLANS["held"], cache_limit=1),
        pytest.raises(CacheLimitError, match=f"attn1: the caches would hold about {memory_in_words(keys)} of memory"),
    ):
        generate(pixart)


def test_a_smaller_call_works_after_one_that_was_refused(
    sd3: nn.Module, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    plan = PLANS["held"]
    limit = need(sd3, plan, generate)
    plain = generate(sd3)
    with tokenprune.apply(sd3, plan, cache_limit=limit) as handle:
        pruned = generate(sd3)
        with pytest.raises(CacheLimitError):
            generate(sd3, seeds=(0, 1))
        assert torch.equal(generate(sd3), pruned)
        handle.reset()
        assert torch.equal(generate(sd3), pruned)
    assert torch.equal(generate(sd3), plain)


def test_smaller_types_take_less(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, PLANS["held"], cache_dtype=torch.bfloat16) as handle:
        generate(sd3)
        limit = handle.report().cache_bytes
    with tokenprune.apply(sd3, PLANS["held"], cache_dtype=torch.bfloat16, cache_limit=limit):
        generate(sd3)
    with tokenprune.apply(sd3, PLANS["held"], cache_limit=limit), pytest.raises(CacheLimitError):
        generate(sd3)


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        (tokenprune.Hold(), None),
        (tokenprune.Hold(), torch.bfloat16),
        (tokenprune.Hold(), torch.int8),
        (Taylor(keys=True), None),
        (Taylor(keys=True), torch.bfloat16),
    ],
)
@pytest.mark.parametrize("guidance", ["none", "uncond-first"])
@pytest.mark.parametrize("span", [(0, 9), (3, 6)])
def test_a_buffer_takes_what_it_says(
    rule: Reuse, dtype: torch.dtype | None, guidance: Guidance, span: tuple[int, int]
) -> None:
    buffer: KeyValueBuffer = rule.start_keys(guidance)
    buffer.dtype, buffer.clock = dtype, torch.tensor(3.0)
    key, value = torch.randn(2, 2, 4, 9, 5)
    needed = buffer.needed(key, value, span)
    buffer.record(key, value, span)
    assert buffer.nbytes == needed


def test_amounts_of_memory() -> None:
    assert (bytes_of(5), bytes_of("8GiB"), bytes_of(" 1.5 KiB "), bytes_of("2GB")) == (5, 8 * 2**30, 1536, 2 * 10**9)
    assert set(UNITS) == {"KiB", "MiB", "GiB", "KB", "MB", "GB"}


@pytest.mark.parametrize("limit", [0, -1, "8", "GiB", "8 gigabytes", "-1GiB", "0GiB", "1e3MB", ""])
def test_what_is_no_amount_is_refused(limit: Any, sd3: nn.Module) -> None:
    with pytest.raises(ValueError, match="apply: cache_limit: expected bytes above 0, or a number of KiB, MiB, GiB, "):
        tokenprune.apply(sd3, CATPolicy(), cache_limit=limit)
    assert not sd3._forward_hooks


@pytest.mark.parametrize("limit", [1.5, True, torch.tensor(3)])
def test_what_is_of_another_type_is_refused(limit: Any, sd3: nn.Module) -> None:
    with pytest.raises(TypeError, match="apply: cache_limit: expected "):
        tokenprune.apply(sd3, CATPolicy(), cache_limit=limit)
