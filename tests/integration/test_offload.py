"""Offloading by accelerate and diffusers, before and after `apply`: pictures, caches and removal are as without it.

There is no accelerator here: parts are offloaded from the CPU to the CPU, to the meta device (what accelerate does with
weights it keeps elsewhere) and to the disk. What moves is then the parameters; the wrapped forwards are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Plan, RefreshSchedule, Taylor

CPU = torch.device("cpu")
PLANS = {
    "pruned": Plan(CATPolicy(0.3, 3, num_clusters=5)),
    "skipped": Plan(CATPolicy(0.3, 2, num_clusters=5), RefreshSchedule(every=3, alpha=0.0, warmup_steps=2), Taylor()),
}


def by_model(pipe: DiffusionPipeline, folder: Path) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def by_layer(pipe: DiffusionPipeline, folder: Path) -> None:
    """What enable_sequential_cpu_offload does to each model."""
    accelerate.cpu_offload(pipe.transformer, execution_device=CPU, offload_buffers=True)


def to_disk(pipe: DiffusionPipeline, folder: Path) -> None:
    accelerate.disk_offload(pipe.transformer, str(folder), execution_device=CPU, offload_buffers=True)


def dispatched(pipe: DiffusionPipeline, folder: Path) -> None:
    parts = {name: "cpu" for name, _ in pipe.transformer.named_children() if name != "transformer_blocks"}
    blocks = {f"transformer_blocks.{n}": "disk" for n in range(len(pipe.transformer.transformer_blocks))}
    owned = {name: "cpu" for name, _ in pipe.transformer.named_parameters(recurse=False)}
    accelerate.dispatch_model(
        pipe.transformer, {**parts, **blocks, **owned}, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


def grouped(kind: str) -> Callable[[DiffusionPipeline, Path], None]:
    def offload(pipe: DiffusionPipeline, folder: Path) -> None:
        more = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        pipe.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **more)

    return offload


OFFLOADS: dict[str, Callable[[DiffusionPipeline, Path], None]] = {
    "model": by_model,
    "sequential": by_layer,
    "disk": to_disk,
    "dispatched": dispatched,
    "group, blocks": grouped("block_level"),
    "group, leaves": grouped("leaf_level"),
}


def onload(pipe: DiffusionPipeline) -> None:
    """Take the offloading off."""
    pipe.remove_all_hooks()
    remove_hook_from_module(pipe.transformer, recurse=True)
    for module in pipe.transformer.modules():
        registry = module.__dict__.get("_diffusers_hook")
        for name in list(registry.hooks) if isinstance(registry, HookRegistry) else ():
            registry.remove_hook(name, recurse=False)


def buffers(model: nn.Module) -> list[Tensor]:
    """Keys and values under the hooks."""
    masked: Any = model.__dict__["_tokenprune"]
    branches = masked.generation.branches.values()
    return [b.key for branch in branches for b in branch.buffers.values() if b.key is not None]


@pytest.mark.parametrize(
    ("name", "plan"), [("sd3", PLANS["skipped"]), ("pixart", PLANS["pruned"])], ids=["sd3, skipped", "pixart, pruned"]
)
@pytest.mark.parametrize("first", ["offload", "apply"])
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning")
def test_offloaded_and_pruned(
    request: pytest.FixtureRequest,
    name: str,
    plan: Plan,
    offload: str,
    first: str,
    draw: Callable[..., Tensor],
    tmp_path: Path,
) -> None:
    pipe = request.getfixturevalue(name)
    plain = draw(pipe)
    with tokenprune.apply(pipe, plan) as handle:
        pruned, tokens = draw(pipe), [step.tokens for step in handle.report().steps]
    assert not torch.equal(pruned, plain)
    names = set(pipe.transformer.state_dict())

    if first == "offload":
        OFFLOADS[offload](pipe, tmp_path)
    handle = tokenprune.apply(pipe, plan)
    if first == "apply":
        OFFLOADS[offload](pipe, tmp_path)
    assert torch.equal(draw(pipe), pruned)
    assert torch.equal(draw(pipe), pruned)  # pipelines take their hooks off and put them on again after a picture
    kept = buffers(pipe.transformer)
    assert bool(kept) is (plan is PLANS["pruned"])  # where no step computes some of the tokens, none are kept
    assert {tensor.device for tensor in kept} <= {CPU}
    assert set(pipe.transformer.state_dict()) == names
    report = handle.report()
    assert [step.tokens for step in report.steps] == tokens
    assert report.macs.total < report.dense_macs.total
    assert torch.equal(draw(pipe), pruned)  # counting ran on stand-ins and left the offloading as it was

    handle.remove()
    assert torch.equal(draw(pipe), plain)
    onload(pipe)
    assert torch.equal(draw(pipe), plain)
    with tokenprune.apply(pipe, plan):
        assert torch.equal(draw(pipe), pruned)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("offload", ["sequential", "group, leaves"])
def test_offloading_ends_while_pruned(
    sd3: DiffusionPipeline, offload: str, plan: Plan, draw: Callable[..., Tensor], tmp_path: Path
) -> None:
    plain = draw(sd3)
    with tokenprune.apply(sd3, plan):
        pruned = draw(sd3)
    before = set(sd3.transformer.__dict__)
    OFFLOADS[offload](sd3, tmp_path)
    with tokenprune.apply(sd3, plan) as handle:
        assert torch.equal(draw(sd3), pruned)
        onload(sd3)
        assert torch.equal(draw(sd3), pruned)
        tokens = [step.tokens for step in handle.report().steps]
    with tokenprune.apply(sd3, plan) as handle:
        assert torch.equal(draw(sd3), pruned)
        assert [step.tokens for step in handle.report().steps] == tokens
    assert torch.equal(draw(sd3), plain)
    assert set(sd3.transformer.__dict__) - before <= {"forward", "_diffusers_hook"}
