"""Errors before anything runs: each says what was wrong and leaves the model as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    AlreadyPrunedError,
    AttentionSite,
    CATPolicy,
    DensePolicy,
    ModuleMap,
    ModuleMapError,
    NoisePolicy,
    NoiseStalenessPolicy,
    RandomPolicy,
    SelectionPolicy,
    SequentialPolicy,
    UnknownModelError,
    latent_grid,
)
from tokenprune.registry import find_adapter

ALL = [CATPolicy, CATPolicy.published, NoisePolicy, NoiseStalenessPolicy, SequentialPolicy, RandomPolicy, DensePolicy]
PLAIN = NoisePolicy(0.3, 2)


def hooked(model: nn.Module) -> list[str]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    return [name for name, module in model.named_modules() if any(getattr(module, kind) for kind in kinds)]


@pytest.mark.parametrize("policy_type", ALL, ids=lambda made: made.__qualname__)
@pytest.mark.parametrize("alpha", [0, 0.0, -0.1, 1.1, math.nan, math.inf])
def test_alpha_out_of_range(policy_type: Callable[..., SelectionPolicy], alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha: expected a fraction of image tokens in \(0, 1\], got {alpha}"):
        policy_type(alpha=alpha)


@pytest.mark.parametrize("policy_type", ALL, ids=lambda made: made.__qualname__)
@pytest.mark.parametrize("warmup", [0, -1, 2.5])
def test_warmup_steps_out_of_range(policy_type: Callable[..., SelectionPolicy], warmup: Any) -> None:
    least = " of at least 1" if isinstance(warmup, int) else ""
    message = rf"warmup_steps: expected a whole number{least}, got {warmup}"
    with pytest.raises(ValueError, match=message):
        policy_type(warmup_steps=warmup)


@pytest.mark.parametrize("alpha", [1e-9, 0.5, 1, 1.0])
def test_alpha_in_range(alpha: float) -> None:
    assert [made(alpha=alpha).alpha for made in ALL] == [alpha] * len(ALL)


def test_unknown_model() -> None:
    class Mystery(nn.Module):
        pass

    with pytest.raises(UnknownModelError, match="Mystery: no adapter describes this model") as caught:
        tokenprune.apply(Mystery(), PLAIN)
    for hint in (
        "PixArtTransformer2DModel, QwenImage21Transformer2DModel, QwenImageTransformer2DModel",
        "ModuleMap",
        "adapter=",
        "tokenprune.adapters",
    ):
        assert hint in str(caught.value)


@pytest.mark.parametrize("target", [None, "model", SimpleNamespace(transformer=None), SimpleNamespace(unet=1)])
def test_target_without_a_transformer(target: Any) -> None:
    message = (
        r"expected a transformer \(torch.nn.Module\) or a pipeline with a `transformer`, got " + type(target).__name__
    )
    with pytest.raises(UnknownModelError, match=message):
        tokenprune.apply(target, PLAIN)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"policy": 0.3}, r"apply: policy: expected a SelectionPolicy, such as CATPolicy\(alpha=0\.3\), got 0\.3"),
        ({"policy": None}, "apply: policy: expected a SelectionPolicy, .* got None"),
        ({"policy": CATPolicy}, "apply: policy: expected a SelectionPolicy"),
        ({"policy": PLAIN, "schedule": 8}, "apply: schedule: expected a Schedule or None, such as .*, got 8"),
        ({"policy": PLAIN, "reuse": "hold"}, "apply: reuse: expected a Reuse or None, such as .*, got 'hold'"),
    ],
)
def test_arguments_of_other_types(model: nn.Module, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tokenprune.apply(model, **wanted)
    assert hooked(model) == []


def test_already_pruned(
    model: nn.Module, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    plain, fresh = generate(model), generate_fresh(model, PLAIN)
    handle = tokenprune.apply(model, PLAIN)
    before = hooked(model)
    message = rf"{type(model).__name__}: already pruned by another handle; call its remove\(\) first"
    for target in (model, SimpleNamespace(transformer=model)):
        with pytest.raises(AlreadyPrunedError, match=message):
            tokenprune.apply(target, CATPolicy())
    assert hooked(model) == before
    assert torch.equal(generate(model), fresh)
    handle.remove()
    assert torch.equal(generate(model), plain)
    tokenprune.apply(model, CATPolicy()).remove()


def bad_map(model: nn.Module, **changes: Any) -> ModuleMap:
    found = find_adapter(model)(model)
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit": "projection"}, "the module map does not fit: no module named projection"),
        ({"blocks": ("blocks.0", "blocks.1")}, r"no module named blocks\.0, blocks\.1"),
        (
            {"attentions": (AttentionSite("transformer_blocks.0.attention"),)},
            r"no module named transformer_blocks\.0\.att",
        ),
        ({"constants": ("transformer_blocks.0.attn9.to_k",)}, r"no module named transformer_blocks\.0\.attn9\.to_k"),
        ({"blocks": ()}, "no blocks or no attention modules listed"),
        ({"attentions": ()}, "no blocks or no attention modules listed"),
        ({"hidden": "tokens"}, "tokens"),
    ],
)
def test_a_map_that_does_not_fit(
    sd3: nn.Module, changes: dict[str, Any], message: str, generate: Callable[..., Tensor]
) -> None:
    plain = generate(sd3)
    with pytest.raises(ModuleMapError, match=f"SD3Transformer2DModel: .*{message}"):
        tokenprune.apply(sd3, PLAIN, adapter=lambda model: bad_map(model, **changes))
    assert hooked(sd3) == []
    assert torch.equal(generate(sd3), plain)
    tokenprune.apply(sd3, PLAIN).remove()


def test_latent_grid_reads_the_named_argument() -> None:
    assert latent_grid("sample", 2)({"sample": torch.zeros(1, 4, 6, 10)}) == (3, 5)
