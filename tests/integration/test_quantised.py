"""Quantised linear layers: packed by hand as bitsandbytes does, by torch itself, by torchao where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, DensePolicy, Plan, RefreshSchedule, Taylor

POLICY = CATPolicy(0.3, 3, num_clusters=5)


class PackedLinear(nn.Module):
    """Weights as bytes, two numbers of four bits in each, unpacked and scaled in forward."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True).clamp_min(1e-8) / 7
        digits = ((linear.weight.detach() / scale).round() + 8).to(torch.uint8).flatten()
        self.weight = nn.Parameter((digits[::2] | (digits[1::2] << 4)).unsqueeze(1), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, tokens: Tensor) -> Tensor:
        digits = torch.stack((self.weight & 15, self.weight >> 4), 1).view(self.out_features, self.in_features)
        return F.linear(tokens, (digits.to(self.scale.dtype) - 8) * self.scale, self.bias)


class EightBitLinear(nn.Linear):
    """Weights of eight bits in a plain layer's place."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        scale = linear.weight.detach().abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight.to(tokens.dtype) * self.scale, self.bias)


def replace(model: nn.Module, kind: Callable[[nn.Linear], nn.Module]) -> None:
    """Put another kind of layer in the place of every linear one inside the blocks."""
    for block in model.transformer_blocks:
        for name, module in list(block.named_modules()):
            if type(module) is nn.Linear:
                parent, _, own = name.rpartition(".")
                setattr(block.get_submodule(parent), own, kind(module))


def by_torch(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*quant.*", UserWarning)
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


def by_torchao(model: nn.Module) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(model.transformer_blocks, quantization.Int8WeightOnlyConfig())


QUANTISED: dict[str, Callable[[nn.Module], None]] = {
    "four bits, packed": lambda model: replace(model, PackedLinear),
    "eight bits": lambda model: replace(model, EightBitLinear),
    "torch, dynamic": by_torch,
    "torchao": by_torchao,
}


@pytest.mark.parametrize("before", [True, False], ids=["quantised first", "applied first"])
@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_layers(pipe: DiffusionPipeline, method: str, before: bool, draw: Callable[..., Tensor]) -> None:
    with tokenprune.apply(pipe, POLICY) as handle:
        exact = draw(pipe)
        macs = handle.report().macs
    handle = None if before else tokenprune.apply(pipe, POLICY)
    QUANTISED[method](pipe.transformer)
    handle = handle or tokenprune.apply(pipe, POLICY)
    pruned = draw(pipe)
    assert not torch.equal(pruned, exact)  # or nothing was quantised
    assert [step.tokens for step in handle.report().steps] == [64] * 3 + [19] * 3
    assert handle.report().macs == macs
    assert torch.equal(draw(pipe), pruned)
    handle.remove()
    plain = draw(pipe)
    assert not torch.equal(pruned, plain)
    for policy in (CATPolicy(alpha=1.0, warmup_steps=1), DensePolicy()):
        with tokenprune.apply(pipe, policy):
            assert torch.equal(draw(pipe), plain)
    with tokenprune.apply(pipe, Plan(POLICY, RefreshSchedule(every=3, alpha=0.0, warmup_steps=2), Taylor())) as handle:
        draw(pipe)
        assert 0 in [step.tokens for step in handle.report().steps]
