"""Counted operations against counting by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import NoisePolicy
from tokenprune.macs.counting import with_a_whole_block
from tokenprune.reports.report import Macs

WIDTH, TEXT_WIDTH, TOKENS, TEXT = 32, 16, 24, 5
PATCH = 2 * 2 * 4


def sd3_by_hand(images: int, tokens: int, dual: bool) -> tuple[int, int]:
    """Linear and attention operations of one call of the 3-layer SD3 that computes `tokens` of 24 image tokens."""
    square = WIDTH * WIDTH
    conditioning = 256 * WIDTH + square + TEXT_WIDTH * WIDTH + square
    embedders = TOKENS * PATCH * WIDTH + TEXT * TEXT_WIDTH * WIDTH
    linear, attention = conditioning + embedders, 0
    for layer in range(3):
        last, twice = layer == 2, dual and layer == 0
        linear += (9 if twice else 6) * square + (2 if last else 6) * square
        linear += (3 + 1) * tokens * square + (3 + (0 if last else 1)) * TEXT * square
        linear += 8 * tokens * square + (0 if last else 8 * TEXT * square)
        attention += 2 * (tokens + TEXT) * (TOKENS + TEXT) * WIDTH
        if twice:
            linear += 4 * tokens * square
            attention += 2 * tokens * TOKENS * WIDTH
    linear += 2 * square + tokens * WIDTH * PATCH
    return images * linear, images * attention


def pixart_by_hand(images: int, tokens: int, cross: bool) -> tuple[int, int]:
    """The same for the 2-layer PixArt; `cross`: whether the keys and values of the text are computed."""
    square = WIDTH * WIDTH
    conditioning = 256 * WIDTH + square + 6 * square
    embedders = TOKENS * PATCH * WIDTH + TEXT * (TEXT_WIDTH * WIDTH + square)
    layer = 4 * tokens * square + 2 * tokens * square + (2 * TEXT * square if cross else 0) + 8 * tokens * square
    attention = 2 * tokens * TOKENS * WIDTH + 2 * tokens * TEXT * WIDTH
    return images * (conditioning + embedders + 2 * layer + tokens * WIDTH * 2 * PATCH), images * 2 * attention


@pytest.mark.parametrize("kind", ["sd3", "sd3-plain", "pixart"])
def test_macs_equal_counting_by_hand(
    kind: str, make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]
) -> None:
    """Two images with batched guidance: 4 rows a call; 3 full steps, then 3 of 7 tokens."""
    model = make_model(kind)
    with tokenprune.apply(model, NoisePolicy(0.3, 3)) as handle:
        generate(model, seeds=(0, 1), length=TEXT)
        report = handle.report()
    if kind == "pixart":
        full, pruned = pixart_by_hand(4, TOKENS, True), pixart_by_hand(4, 7, False)
    else:
        full, pruned = sd3_by_hand(4, TOKENS, kind == "sd3"), sd3_by_hand(4, 7, kind == "sd3")
    assert (report.dense_macs.linear, report.dense_macs.attention) == (6 * full[0], 6 * full[1])
    assert (report.macs.linear, report.macs.attention) == tuple(3 * (f + p) for f, p in zip(full, pruned, strict=True))
    assert report.macs.total == report.macs.linear + report.macs.attention
    assert report.mac_ratio == report.macs.total / report.dense_macs.total


def test_macs_of_sequential_guidance_are_those_of_batched_guidance(
    sd3: nn.Module, generate: Callable[..., Tensor]
) -> None:
    reports = []
    for guidance in ("batched", "sequential"):
        with tokenprune.apply(sd3, NoisePolicy(0.3, 3)) as handle:
            generate(sd3, guidance=guidance)
            reports.append(handle.report())
    assert reports[0].macs == reports[1].macs
    assert reports[0].dense_macs == reports[1].dense_macs


def test_counting_leaves_the_model_alone(
    sd3: nn.Module, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    parameters = {name: (id(p), p.device.type, p.clone()) for name, p in sd3.named_parameters()}
    fresh = generate_fresh(sd3, NoisePolicy(0.3, 3))
    with tokenprune.apply(sd3, NoisePolicy(0.3, 3)) as handle:
        generate(sd3)
        handle.report()
        assert torch.equal(generate(sd3), fresh)
    for name, parameter in sd3.named_parameters():
        known, device, value = parameters[name]
        assert id(parameter) == known
        assert parameter.device.type == device == "cpu"
        assert torch.equal(parameter, value)


def test_macs_follow_the_length_of_the_text(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    """Two generations under one handle, alike but for the text."""
    with tokenprune.apply(sd3, NoisePolicy(0.3, 3)) as handle:
        for length in (TEXT, 9):
            generate(sd3, length=length)
            macs = handle.report().macs
    with tokenprune.apply(sd3, NoisePolicy(0.3, 3)) as handle:
        generate(sd3, length=9)
        assert macs == handle.report().macs


def test_one_block_of_all_tokens_at_a_pruned_step() -> None:
    full = {"": Macs(100, 50), "blocks.0": Macs(40, 20), "blocks.1": Macs(40, 20)}
    pruned = {"": Macs(40, 25), "blocks.0": Macs(15, 10), "blocks.1": Macs(15, 10)}
    assert with_a_whole_block(full, pruned, "blocks.0") == Macs(40 + 40 - 15, 25 + 20 - 10)
