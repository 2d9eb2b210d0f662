"""A third party's package: a transformer of its own, its adapter, and a policy, all found through entry points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenprune import AttentionSite, Memory, ModuleMap, Observation, ScorePolicy, latent_grid

WIDTH = 16


class Attention(nn.Module):
    """Self-attention with fused projections, [B, N, C] to [B, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, scaled by the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x = x + self.attn(x * level)
        return x + self.mlp(x)


class Transformer(nn.Module):
    """Latents [B, 4, height, width] and times [B] to a prediction of the same shape."""

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


def module_map(model: Transformer) -> ModuleMap:
    """Where things are in it."""
    blocks = tuple(f"blocks.{i}" for i in range(len(model.blocks)))
    return ModuleMap(
        blocks=blocks,
        attentions=tuple(AttentionSite(f"{path}.attn") for path in blocks),
        exit="final",
        grid=latent_grid("latents", 2),
        hidden="x",
        latents="latents",
        time="t",
        text=None,
    )


@dataclass(frozen=True)
class DriftPolicy(ScorePolicy):
    """The tokens furthest from where they were, the oldest first among equals."""

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """Distance from the reference, [B, N]."""
        age = torch.zeros_like(seen.relative_noise[..., 0]) if seen.age is None else seen.age.float()
        return seen.relative_noise.norm(dim=-1) * (1 + age)
