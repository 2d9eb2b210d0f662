"""Pipelines and transformers that are loaded with a `device_map`: pruned as those loaded without one.

There is no accelerator here: parts lie on the CPU and on the disk; tests/integration/test_devices.py has two devices.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from torch import Tensor
from transformers.utils import is_accelerate_available

import tokenprune
from tokenprune import CATPolicy, Report

PARTS = ("pos_embed", "adaln_single", "caption_projection", "scale_shift_table", "transformer_blocks.0", "norm_out")
PLACES = {**dict.fromkeys(PARTS, "cpu"), "transformer_blocks.1": "disk", "proj_out": "disk"}


@pytest.fixture
def saved(pixart: DiffusionPipeline, tmp_path: Path) -> Path:
    pixart.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def drawn(pipe: DiffusionPipeline, draw: Callable[..., Tensor], policy: CATPolicy) -> tuple[Tensor, Tensor, Report]:
    """What it draws plain and pruned, and what that cost; afterwards it is plain again."""
    plain = draw(pipe)
    with tokenprune.apply(pipe, policy) as handle:
        pruned, report = draw(pipe), handle.report()
        assert torch.equal(draw(pipe), pruned)
    assert torch.equal(draw(pipe), plain)
    return plain, pruned, report


def check(found: tuple[Tensor, Tensor, Report], expected: tuple[Tensor, Tensor, Report]) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert not torch.equal(found[0], found[1])
    assert (found[2].tokens, found[2].macs) == (expected[2].tokens, expected[2].macs)


@pytest.mark.skipif(not is_accelerate_available(), reason="transformers asks for a later version of accelerate")
@pytest.mark.parametrize("where", ["cpu", "balanced"])
def test_a_pipeline_loaded_with_a_device_map(
    where: str, pixart: DiffusionPipeline, saved: Path, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    pipe = DiffusionPipeline.from_pretrained(saved, device_map=where)
    pipe.set_progress_bar_config(disable=True)
    check(drawn(pipe, draw, guest_policy), drawn(pixart, draw, guest_policy))


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning")
@pytest.mark.parametrize("where", ["auto", PLACES], ids=["auto", "cpu and disk"])
def test_a_transformer_loaded_with_a_device_map(
    where: Any, pixart: DiffusionPipeline, saved: Path, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    expected = drawn(pixart, draw, guest_policy)
    transformer = PixArtTransformer2DModel.from_pretrained(
        saved / "transformer", device_map=where, offload_folder=saved / "offloaded"
    )
    devices = {parameter.device.type for parameter in transformer.parameters()}
    assert devices == ({"cpu"} if where == "auto" else {"cpu", "meta"})
    pixart.register_modules(transformer=transformer)
    check(drawn(pixart, draw, guest_policy), expected)
