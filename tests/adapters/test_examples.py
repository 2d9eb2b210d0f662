"""Every adapter's model takes the arguments that the package's examples make for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import ALL, Tiny
from torch import nn

from tokenprune.ops.grid import num_tokens
from tokenprune.registry import find_adapter, known_models
from tokenprune_adapters.examples import EXAMPLES, Example
from tokenprune_adapters.unsupported import REFUSALS

ROWS, COLUMNS = 4, 4
"""Tokens, square as some models ask."""


def example_call(case: Tiny, model: nn.Module) -> tuple[Example, Any]:
    example = EXAMPLES[case.model]
    unit = example.scale * example._patches(model)[0]
    frames = None if example.frames == 1 else 3 * example.frame_scale
    return example, example.latents(model, ROWS * unit, COLUMNS * unit, frames, text=5, batch=2)


def test_there_is_one_for_every_adapter() -> None:
    assert {case.model for case in ALL} == set(EXAMPLES)
    assert set(EXAMPLES) <= set(known_models()) - set(REFUSALS)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers warns of its own old names
@pytest.mark.filterwarnings("ignore:In CPU autocast")  # Mochi asks for float32, which the CPU has anyway
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_the_model_takes_them(case: Tiny) -> None:
    model = case.make()
    example, latents = example_call(case, model)
    arguments = example.arguments(model, latents, "cpu", torch.float32)
    with torch.no_grad():
        model(**arguments)
    found = find_adapter(model)(model)
    frames = latents.frames if case.name == "latte" else 1
    drawn = num_tokens(found.grid(arguments)) * frames
    given = sum(found.references(arguments)) if case.name == "hunyuan-video-i2v" else 0  # the first frame
    assert drawn + given == latents.tokens


def test_sizes_must_be_whole_tokens() -> None:
    model = ALL[0].make()
    with pytest.raises(ValueError, match=r"width: expected a multiple of 16 pixels \(8 to a latent, 2 .*got 24"):
        EXAMPLES[ALL[0].model].latents(model, 32, 24)
    with pytest.raises(ValueError, match="frames: expected 1, as SD3Transformer2DModel makes pictures, got 3"):
        EXAMPLES[ALL[0].model].latents(model, 32, 32, 3)
