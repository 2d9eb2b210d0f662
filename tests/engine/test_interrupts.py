"""After an exception or a keyboard interrupt anywhere in the model, the next generation is as on a fresh handle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import tokenprune
from tokenprune import CATPolicy

PLACES = {
    "model": "",
    "before the blocks": "pos_embed",
    "first block": "transformer_blocks.0",
    "last block": "transformer_blocks.1",
    "attention": "transformer_blocks.1.attn",
    "inside attention": "transformer_blocks.0.attn.to_q",
    "after attention": "transformer_blocks.1.attn.to_out.0",
    "exit": "proj_out",
}


class StopError(Exception):
    pass


def locate(model: nn.Module, place: str) -> nn.Module:
    path = PLACES[place]
    if "attn" in path and not hasattr(model.transformer_blocks[0], "attn"):
        path = path.replace("attn", "attn1")
    return model.get_submodule(path)


@contextmanager
def failing(module: nn.Module, call: int, error: type[BaseException], before: bool = True) -> Iterator[None]:
    """The module raises on its given call."""
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise error

    register = module.register_forward_pre_hook if before else module.register_forward_hook
    with register(hook):
        yield
    assert calls > call


def stack() -> list[TorchFunctionMode]:
    return torch.overrides._get_current_function_mode_stack()


@settings(max_examples=4)
@given(
    call=st.sampled_from([0, 1, 2, 4]),
    kind=st.sampled_from(["sd3", "pixart"]),
    warmup=st.integers(1, 3),
    seed=st.sampled_from([0, 1]),
    before=st.booleans(),
    guidance=st.sampled_from(["batched", "sequential", "none"]),
    times=st.sampled_from(["table", "fresh"]),
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_the_next_generation_after_an_error(
    place: str,
    error: type[BaseException],
    call: int,
    kind: str,
    warmup: int,
    seed: int,
    before: bool,
    guidance: str,
    times: str,
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    model, policy = make_model(kind), CATPolicy(0.3, warmup, num_clusters=5)
    wanted = {"guidance": guidance, "times": times}
    fresh = generate_fresh(model, policy, seeds=(seed,), **wanted)
    with tokenprune.apply(model, policy):
        with failing(locate(model, place), call, error, before), pytest.raises(error):
            generate(model, **wanted)
        assert error is KeyboardInterrupt or not stack()
        assert torch.equal(generate(model, seeds=(seed,), **wanted), fresh)
        assert not stack()


@pytest.mark.parametrize("warmup", [1, 2, 3])
@pytest.mark.parametrize("call", [0, 1, 3])
@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_an_interrupt_in_the_same_generation_begun_again(
    sd3: nn.Module,
    warmup: int,
    call: int,
    guidance: str,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    """The same noise and the same table of timesteps: nothing but the broken call tells that it begins again."""
    policy, table = CATPolicy(0.3, warmup, num_clusters=5), torch.linspace(1000, 20, 6)
    fresh = generate_fresh(sd3, policy, guidance=guidance)
    with tokenprune.apply(sd3, policy):
        with failing(sd3.transformer_blocks[1].attn.to_q, call, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            generate(sd3, guidance=guidance, table=table)
        assert torch.equal(generate(sd3, guidance=guidance, table=table), fresh)


@pytest.mark.parametrize("call", [0, 4], ids=["full", "pruned"])
def test_attention_elsewhere_is_plain_after_an_interrupt(
    model: nn.Module, call: int, generate: Callable[..., Tensor]
) -> None:
    """An interrupt skips torch's hooks, so the mode stays until the next call; it must not touch other attention."""
    query, key = (torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    expected = F.scaled_dot_product_attention(query, key, key)
    handle = tokenprune.apply(model, CATPolicy(0.3, 3))
    with failing(locate(model, "inside attention"), call, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        generate(model)
    assert torch.equal(F.scaled_dot_product_attention(query, key, key), expected)
    handle.remove()
    assert not stack()
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_another_models_mode_stays_on_the_stack(
    model: nn.Module, error: type[BaseException], generate: Callable[..., Tensor]
) -> None:
    class Outer(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with tokenprune.apply(model, CATPolicy(0.3, 3)) as handle, Outer() as outer:
        with failing(locate(model, "inside attention"), 1, error), pytest.raises(error):
            generate(model)
        handle.reset()
        generate(model)
        assert stack() == [outer]


def test_two_pruned_models_interrupted(
    make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    models, policy = [make_model("sd3"), make_model("pixart")], CATPolicy(0.3, 3)
    fresh = [generate_fresh(model, policy) for model in models]
    with tokenprune.apply(models[0], policy), tokenprune.apply(models[1], policy):
        for model in models:
            with failing(locate(model, "inside attention"), 4, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
                generate(model)
        for model, expected in zip(models, fresh, strict=True):
            assert torch.equal(generate(model), expected)
    assert not stack()
