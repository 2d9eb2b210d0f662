"""The code of docs/write-an-adapter.md, on a diffusion transformer in plain PyTorch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenprune.testing import AdapterCheckError

PAGE = Path(__file__).parents[2] / "docs" / "write-an-adapter.md"
WIDTH = 16


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x = x + self.attn(x * level)
        return x + self.mlp(x)


class PlainTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(4, WIDTH, 2, stride=2)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.final = nn.Linear(WIDTH, 16)

    def forward(self, latents: Tensor, t: Tensor) -> Tensor:
        x = self.embed(latents)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, 1 + t.view(-1, 1, 1))
        return self.final(x).unflatten(1, (height, width)).permute(0, 3, 1, 2)


def test_the_pages_adapter_prunes() -> None:
    torch.manual_seed(0)
    model = PlainTransformer()
    times = torch.linspace(1, 0.1, 6)
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        plain = [model(latents, t.expand(1)) for t in times]
    scope: dict[str, Any] = {"model": model}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[0], scope)
    with scope["handle"] as handle, torch.no_grad():
        pruned = [model(latents, t.expand(1)) for t in times]
        report = handle.report()
    assert [step.tokens for step in report.steps] == [64] * 4 + [19] * 2
    for step in range(4):
        assert torch.equal(plain[step], pruned[step])
    changed = (pruned[4] != pruned[3]).any(1).sum()
    assert int(changed) == 19


def test_the_page_checks_its_adapter() -> None:
    adapter, check = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    inputs = {"latents": torch.randn(2, 4, 8, 12), "t": torch.full((2,), 0.5)}
    scope: dict[str, Any] = {"make_small_model": PlainTransformer, "inputs": inputs}
    exec(adapter.partition("handle =")[0], scope)
    exec(check, scope)
    exec(
        adapter.partition("handle =")[0].replace(
            '.attn") for i in range(len(model.blocks))', '.attn") for i in range(1)'
        ),
        scope,
    )
    with pytest.raises(AdapterCheckError, match="breaks 'pruned'"):
        exec(check, scope)
