"""Two hundred generations in a row, everything about them random: memory stays flat, and pictures stay right."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    AttentionRankPolicy,
    CATPolicy,
    ErrorControlledPolicy,
    Hold,
    Plan,
    RandomPolicy,
    RefreshSchedule,
    Reuse,
    Schedule,
    SelectionPolicy,
    SequentialPolicy,
    Taylor,
    TocaPolicy,
    WarmupSchedule,
)

GENERATIONS, COMPARED_EVERY, KEPT_FOR, MEASURED_EVERY, SETTLED = 200, 10, 8, 40, 40
GROWTH = 48 * 2**20
"""Bytes that the process may grow by once all kinds of generations have been seen: what allocators keep."""
POLICIES: tuple[Callable[[], SelectionPolicy], ...] = (
    lambda: CATPolicy(0.3, 2, num_clusters=4),
    lambda: RandomPolicy(0.4, 2),
    lambda: SequentialPolicy(0.25, 2),
    lambda: ErrorControlledPolicy(0.4, 2),
    lambda: AttentionRankPolicy(0.4, 2),
    lambda: TocaPolicy(0.4, 2),
)
SCHEDULES: tuple[Schedule | None, ...] = (
    None,
    WarmupSchedule(0.5, 1),
    RefreshSchedule(every=2, alpha=0.3, warmup_steps=1),
    RefreshSchedule(every=3, alpha=0.0, warmup_steps=2),
)
REUSES: tuple[Reuse, ...] = (Hold(), Taylor(), Taylor(order=2, keys=True))
SIZES = ((4, 4), (4, 6), (2, 6))


class StopError(Exception):
    """Raised on purpose."""


def make() -> nn.Module:
    """Two blocks, as narrow as they can be."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=32,
        ).eval()


def live_bytes() -> int:
    gc.collect()
    tensors = [
        found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter) and found.device.type == "cpu"
    ]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def any_plan(chance: np.random.Generator) -> Plan:
    pick = [options[chance.integers(len(options))] for options in (POLICIES, SCHEDULES, REUSES)]
    return Plan(pick[0](), pick[1], pick[2])


def any_generation(chance: np.random.Generator) -> dict[str, Any]:
    return {
        "seeds": tuple(int(seed) for seed in chance.choice(50, size=chance.integers(1, 3), replace=False)),
        "steps": int(chance.integers(1, 6)),
        "grid": SIZES[chance.integers(len(SIZES))],
        "guidance": str(chance.choice(["batched", "sequential", "none"])),
        "length": int(chance.integers(3, 6)),
    }


def stop_one(
    model: nn.Module, wanted: dict[str, Any], chance: np.random.Generator, generate: Callable[..., Tensor]
) -> None:
    """A generation that an error, an interrupt or the user stops somewhere, or that runs through before."""
    error = (StopError, KeyboardInterrupt, torch.OutOfMemoryError)[chance.integers(3)]
    left = [int(chance.integers(0, 12))]

    def stop(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error

    with model.transformer_blocks[1].attn.to_q.register_forward_pre_hook(stop), contextlib.suppress(error):
        generate(model, **wanted, stop=int(chance.integers(1, 7)))


def test_two_hundred_generations(generate: Callable[..., Tensor]) -> None:
    chance, process = np.random.default_rng(0), psutil.Process()
    model, other = make(), make()
    for make_policy in POLICIES:  # libraries that they import make tensors when they are first used
        with tokenprune.apply(model, make_policy()):
            generate(model)
    baseline = live_bytes()
    handle, plan, settled, stopped, compared = None, any_plan(chance), 0, 0, 0
    for number in range(GENERATIONS):
        if number % KEPT_FOR == 0:
            if handle is not None:
                handle.remove()
                handle = None  # it keeps what its report tells
                assert number % MEASURED_EVERY or live_bytes() == baseline
            plan = any_plan(chance)
            handle = tokenprune.apply(model, plan)
        if number == SETTLED:
            settled = process.memory_info().rss
        wanted = any_generation(chance)
        if chance.random() < 0.25:
            stop_one(model, any_generation(chance), chance, generate)
            stopped += 1
        picture = generate(model, **wanted)
        if number % COMPARED_EVERY == 0:
            with tokenprune.apply(other, plan):
                assert torch.equal(picture, generate(other, **wanted)), f"generation {number}: {plan}, {wanted}"
            compared += 1
        del picture
    assert stopped > GENERATIONS // 8
    assert compared == GENERATIONS // COMPARED_EVERY
    assert process.memory_info().rss - settled < GROWTH
    handle.remove()
    del handle
    assert live_bytes() == baseline


def test_memory_under_one_handle_stays_what_the_last_generation_needs(generate: Callable[..., Tensor]) -> None:
    chance, model = np.random.default_rng(1), make()
    last = {"seeds": (0,), "steps": 4, "grid": (4, 6), "guidance": "batched"}
    with tokenprune.apply(model, Plan(CATPolicy(0.3, 2, num_clusters=4), reuse=Taylor(keys=True))):
        generate(model, **last)
        needed = live_bytes()
        for _ in range(2):
            for _ in range(5):
                generate(model, **any_generation(chance))
            for _ in range(2):  # row indices of other numbers of tokens are let go of when the next one begins
                generate(model, **last)
            assert live_bytes() == needed


@pytest.mark.parametrize(
    "plan", [Plan(CATPolicy(0.3, 2, num_clusters=4)), Plan(CATPolicy(0.3, 2), SCHEDULES[3], Taylor())]
)
def test_a_pipeline_for_a_while(sd3: StableDiffusion3Pipeline, plan: Plan, draw: Callable[..., Tensor]) -> None:
    chance = np.random.default_rng(2)
    with tokenprune.apply(sd3, plan):
        fresh = draw(sd3)
        needed = live_bytes()
        for _ in range(6):
            draw(
                sd3,
                seed=int(chance.integers(100)),
                num_inference_steps=int(chance.integers(1, 5)),
                guidance_scale=float(chance.choice([1.0, 4.0])),
                num_images_per_prompt=int(chance.integers(1, 3)),
            )
        assert torch.equal(draw(sd3), fresh)
        assert live_bytes() == needed
