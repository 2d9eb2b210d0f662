"""Models whose parts are on two devices: every index, buffer and clock follows the tensors that it works on.

No machine of the tests has two accelerators. The models run on torch's fake tensors, which have devices, shapes and
dtypes but no values, and which refuse to combine tensors of two devices. Accelerate's own hooks move what goes from
part to part.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import tiny
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

import tokenprune
from tokenprune import AttentionRankPolicy, NoiseStalenessPolicy, Plan, SelectionPolicy, SequentialPolicy, Taylor
from tokenprune.engine.step_tracker import OneGeneration
from tokenprune.registry import find_adapter

DEVICES = ("lazy:0", "lazy:1")
"""A kind of device that every build of torch knows of."""
NAMES = ("sd3.5", "pixart", "qwenimage", "auraflow", "cogview4", "hunyuan-dit")
MODELS = {model.name: model for model in tiny.IMAGES}
CONFIGURATIONS: dict[str, SelectionPolicy | Plan] = {
    "noise": NoiseStalenessPolicy(0.4, warmup_steps=2),
    "forecasts": Plan(SequentialPolicy(0.4, warmup_steps=2), reuse=Taylor(keys=True)),
    "attention": AttentionRankPolicy(0.4, warmup_steps=2),
}


class Mover(AlignDevicesHook):
    """Accelerate's hook as it is, but that the parameters are where they belong already."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def on(device: str, tensor: Tensor) -> Tensor:
    """A tensor of the same shape and dtype on a device; within the fake mode, without values."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def spread(model: nn.Module, exit_path: str, exit_device: str) -> None:
    """Parts of the model on two devices: the second half of its blocks on the second, its exit where it is told."""
    lists = [module for module in model.children() if isinstance(module, nn.ModuleList)]
    blocks = list(chain.from_iterable(lists))
    late = {id(block) for block in blocks[len(blocks) // 2 :]}
    for part in [model, *blocks, *(child for child in model.children() if child not in lists)]:
        device = DEVICES[id(part) in late]
        if part is model.get_submodule(exit_path):
            device = exit_device
        for module in (part,) if part is model else part.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        moved = on(device, tensor)
                        tensors[name] = (
                            nn.Parameter(moved, requires_grad=False) if tensors is module._parameters else moved
                        )
        add_hook_to_module(part, Mover(execution_device=device))


def run(
    model: nn.Module, inputs: dict[str, Any], configuration: SelectionPolicy | Plan, cache_device: str | None = None
) -> list[dict[str, str]]:
    """Where the keys of every attention module are read, at each of some steps."""
    where = []
    with (
        torch.no_grad(),
        tokenprune.apply(model, configuration, guidance="none", cache_device=cache_device) as handle,
    ):
        handle._masked.timeline._trackers[""] = OneGeneration(time_rises=False)  # fake timesteps cannot be read
        for _ in range(4):
            model(**inputs)
            (branch,) = handle._masked.generation.branches.values()
            where.append({key.path: str(buffer.device) for key, buffer in branch.buffers.items() if buffer.length})
        tokens = [record.calls[0].tokens for record in handle._masked.generation.records]
    assert tokens[0] == tokens[1] > tokens[2] == tokens[3] > 0
    return where


@pytest.mark.parametrize("exit_device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_on_two_devices(name: str, exit_device: str) -> None:
    model, inputs = MODELS[name].make(), MODELS[name].inputs()
    inputs.pop("block_controlnet_hidden_states", None)  # dispatched models do not move those
    path = find_adapter(model)(model).exit_site.path
    with FakeTensorMode(allow_non_fake_inputs=True):
        spread(model, path, exit_device)
        inputs = tree_map(lambda value: on(DEVICES[0], value) if isinstance(value, Tensor) else value, inputs)
        try:
            with torch.no_grad():
                model(**inputs)
        except NotImplementedError as error:
            pytest.skip(f"torch {torch.__version__} cannot run the plain model so: {str(error).splitlines()[0]}")
        for configuration in CONFIGURATIONS.values():
            where = run(model, inputs, configuration)
            assert set(where[0].values()) == set(DEVICES)
            assert where[0] == where[-1]
            assert where == run(model, inputs, configuration, cache_device="cpu")


def test_fake_tensors_refuse_two_devices() -> None:
    """What the test above rests on."""
    with FakeTensorMode():
        first, second = (torch.empty(3, 3, device=device) for device in DEVICES)
        with pytest.raises(RuntimeError, match="device"):
            first[torch.empty(2, dtype=torch.int64, device=DEVICES[1])] @ second
