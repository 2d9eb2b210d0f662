"""The handle: its life, and the memory it holds."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, NoisePolicy

POLICY = NoisePolicy(0.3, 3)


def test_a_context_manager_removes(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    plain = generate(model)
    with tokenprune.apply(model, POLICY) as handle:
        assert isinstance(handle, tokenprune.Handle)
        assert not torch.equal(generate(model), plain)
    assert torch.equal(generate(model), plain)


def test_remove_twice(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    plain = generate(model)
    handle = tokenprune.apply(model, POLICY)
    handle.remove()
    other = tokenprune.apply(model, POLICY)
    handle.remove()
    assert not torch.equal(generate(model), plain)
    other.remove()
    assert torch.equal(generate(model), plain)


def test_a_pipeline_like_object(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    pipe, plain = SimpleNamespace(transformer=model, vae=None), generate(model)
    with tokenprune.apply(pipe, POLICY):
        through_pipe = generate(pipe.transformer)
    with tokenprune.apply(model, POLICY):
        assert torch.equal(generate(model), through_pipe)
    assert vars(pipe) == {"transformer": model, "vae": None}
    assert torch.equal(generate(model), plain)


def test_repr(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    handle = tokenprune.apply(sd3, POLICY)
    begin = "Handle(SD3Transformer2DModel, NoisePolicy(alpha=0.3, warmup_steps=3), WarmupSchedule(alpha=0.3"
    assert repr(handle).startswith(begin)
    assert "Hold()" in repr(handle)
    assert repr(handle).endswith("3 blocks, 4 attention modules, 0 generations so far)")
    generate(sd3)
    assert repr(handle).endswith("1 generations so far)")
    handle.remove()
    assert repr(handle).endswith("removed)")


def test_reset_frees_the_caches(pixart: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(pixart, POLICY) as handle:
        generate(pixart, seeds=(0, 1))
        held = live_bytes()
        handle.reset()
        assert live_bytes() < held


def live_bytes() -> int:
    gc.collect()
    return sum(o.nbytes for o in gc.get_objects() if type(o) is Tensor and not o.requires_grad)


@pytest.mark.parametrize("guidance", ["batched", "perturbed", "", 2, True])
def test_guidance_of_no_kind(sd3: nn.Module, guidance: Any) -> None:
    before = dict(vars(sd3))
    message = r"^apply: guidance: expected one of none, .*uncond-cond-perturbed or None, got "
    with pytest.raises(ValueError, match=message):
        tokenprune.apply(sd3, CATPolicy(), guidance=guidance)
    assert vars(sd3) == before


@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_memory_does_not_grow(pixart: nn.Module, guidance: str, generate: Callable[..., Tensor]) -> None:
    held = []
    with tokenprune.apply(pixart, CATPolicy(0.3, 3)):
        for seed in range(4):
            generate(pixart, seeds=(seed, seed + 10), guidance=guidance)
            if seed in (1, 3):
                held.append(live_bytes())
    assert held[0] == held[1]


@pytest.mark.parametrize("times", ["table", "fresh"])
@pytest.mark.parametrize("stop", [1, 2])
def test_memory_is_bounded_when_one_start_is_repeated(
    sd3: nn.Module, times: str, stop: int, generate: Callable[..., Tensor]
) -> None:
    """The same noise and timestep again and again, as in a benchmark or with a one-step sampler."""
    held = []
    with tokenprune.apply(sd3, POLICY):
        for repeat in range(17):
            generate(sd3, stop=stop, times=times)
            if repeat in (8, 16):
                held.append(live_bytes())
    assert held[0] == held[1]
