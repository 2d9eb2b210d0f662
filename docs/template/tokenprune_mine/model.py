"""A small diffusion transformer in plain PyTorch, in the place of yours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 16


class Attention(nn.Module):
    """Self-attention with fused projections, [B, N, C] to [B, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """What tokens see of each other."""
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, scaled by the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Tokens [B, N, C] after the block."""
        x = x + self.attn(x * level)
        return x + self.mlp(x)


class MyTransformer(nn.Module):
    """Latents [B, 4, height, width] and times [B] to a prediction of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(4, WIDTH, 2, stride=2)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.final = nn.Linear(WIDTH, 16)

    def forward(self, latents: Tensor, t: Tensor) -> Tensor:
        """The prediction."""
        x = self.embed(latents)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, 1 + t.view(-1, 1, 1))
        patches = self.final(x).unflatten(1, (height, width)).unflatten(3, (2, 2, 4))
        return torch.einsum("nhwpqc->nchpwq", patches).flatten(4, 5).flatten(2, 3)


def example() -> tuple[nn.Module, dict[str, Any]]:
    """A model with random weights and the arguments of a call by name, for `tokenprune inspect` and for tests."""
    torch.manual_seed(0)
    return MyTransformer(), {"latents": torch.randn(2, 4, 16, 24), "t": torch.full((2,), 0.5)}
