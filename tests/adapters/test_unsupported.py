"""Models that cannot be pruned say why."""

from __future__ import annotations

from typing import Any

import diffusers
import diffusers.models.transformers as transformers
import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import (
    QwenImage21AttnProcessor,
    QwenImage21FlexAttnProcessor,
)
from tiny import ALL, TEXT, square

import tokenprune
from tokenprune import CATPolicy, UnsupportedModelError
from tokenprune.registry import known_models
from tokenprune_adapters.unsupported import REFUSALS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize("name", REFUSALS)
def test_every_reason_is_given(name: str) -> None:
    """Without building the models: some need much to be built."""
    model = torch.nn.Module.__new__(getattr(diffusers, name, None) or getattr(transformers, name))
    with pytest.raises(UnsupportedModelError, match=f"^{name}: token pruning cannot work with this model: ") as caught:
        tokenprune.registry.find_adapter(model)(model)
    assert REFUSALS[name].why in str(caught.value)
    assert str(caught.value).endswith(f"Instead: {REFUSALS[name].advice}")


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        (
            "SanaTransformer2DModel",
            {
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 1,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 8,
                "cross_attention_dim": 16,
                "caption_channels": TEXT,
                **square,
            },
            "linear attention",
        ),
        (
            "Kandinsky5Transformer3DModel",
            {
                "in_text_dim": TEXT,
                "in_text_dim2": TEXT,
                "time_dim": 16,
                "model_dim": 16,
                "ff_dim": 32,
                "num_text_blocks": 1,
                "num_visual_blocks": 1,
                "axes_dims": (4, 2, 2),
                "attention_type": "nabla",
            },
            "'nabla' attends in tiles of 64 tokens",
        ),
        (
            "Transformer2DModel",
            {"in_channels": 32, "num_layers": 1, **square},
            "only its form with patches",
        ),
    ],
)
def test_models_are_refused(name: str, config: dict[str, Any], why: str) -> None:
    model = getattr(diffusers, name)(**config)
    with pytest.raises(UnsupportedModelError, match=why):
        tokenprune.apply(model, CATPolicy(0.3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_processor_is_refused() -> None:
    """And its model is served with another one."""
    (tiny,) = (tiny for tiny in ALL if tiny.name == "qwenimage-2.1")
    model = tiny.make()
    model.set_attn_processor(QwenImage21FlexAttnProcessor())
    with pytest.raises(UnsupportedModelError, match=r"masks made for blocks .*model.set_attn_processor"):
        tokenprune.apply(model, CATPolicy(0.3))
    model.set_attn_processor(QwenImage21AttnProcessor())
    tokenprune.apply(model, CATPolicy(0.3)).remove()


def test_every_known_model_is_tested_or_refused() -> None:
    assert {tiny.model for tiny in ALL} | set(REFUSALS) == set(known_models())
