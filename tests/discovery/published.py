"""Small transformers in the style of published research code, each with what only it does."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from models import CHANNELS, WIDTH, Attention, Block, FinalLayer, Mlp, labelled, noise
from torch import Tensor, nn

LONGEST = 6
"""Tokens of a padded prompt."""


def sinusoidal(t: Tensor) -> Tensor:
    """Embedding [B, WIDTH] of timesteps [B]."""
    rates = torch.exp(-math.log(10000) * torch.arange(WIDTH // 2, device=t.device) / (WIDTH // 2))
    angles = t[:, None].float() * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, N, 2 2 C] to [B, C, 2 height, 2 width]."""
    patches = tokens.unflatten(1, (height, width)).unflatten(3, (2, 2, -1))
    return torch.einsum("nhwpqc->nchpwq", patches).flatten(4, 5).flatten(2, 3)


# U-ViT: time and class as tokens before the image's, long skip connections, perhaps a convolution at the end ----------


class SkipBlock(nn.Module):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), Mlp()
        self.skip_linear = nn.Linear(2 * WIDTH, WIDTH) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    def __init__(self, conv: bool = False) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(CHANNELS, WIDTH, 2, stride=2)
        self.label_emb, self.pos_embed = nn.Embedding(11, WIDTH), nn.Parameter(torch.zeros(1, 2 + 24, WIDTH))
        self.in_blocks = nn.ModuleList(SkipBlock(False) for _ in range(2))
        self.mid_block = SkipBlock(False)
        self.out_blocks = nn.ModuleList(SkipBlock(True) for _ in range(2))
        self.norm, self.decoder_pred = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * CHANNELS)
        self.final_layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        x = self.patch_embed(x)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        tokens = x.shape[1]
        x = torch.cat([sinusoidal(timesteps)[:, None], self.label_emb(y)[:, None], x], dim=1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder_pred(self.norm(x))
        assert x.size(1) == 2 + tokens
        return self.final_layer(to_image(x[:, 2:], height, width))


class UViTConv(UViT):
    def __init__(self) -> None:
        super().__init__(conv=True)


# The reference MMDiT of SD3: blocks of two streams whose halves are called by method, the last one without text -------


class DismantledBlock(nn.Module):
    def __init__(self, pre_only: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH, elementwise_affine=False), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH, elementwise_affine=False), Mlp()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, (2 if pre_only else 6) * WIDTH))
        self.pre_only = pre_only

    def pre_attention(self, x: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        shift, scale, *rest = self.adaLN_modulation(c)[:, None].chunk(2 if self.pre_only else 6, dim=-1)
        return self.attn.qkv(self.norm1(x) * (1 + scale) + shift), [x, *rest]

    def post_attention(self, found: Tensor, kept: list[Tensor]) -> Tensor:
        x, gate, shift, scale, gate2 = kept
        x = x + gate * self.attn.proj(found)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale) + shift)


class MixingBlock(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.context_block, self.x_block = DismantledBlock(last), DismantledBlock()

    def forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor]:
        of_text, text_kept = self.context_block.pre_attention(context, c)
        of_image, image_kept = self.x_block.pre_attention(x, c)
        query, key, value = torch.cat([of_text, of_image], 1).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        text, image = found[:, : context.shape[1]], found[:, context.shape[1] :]
        after = None if self.context_block.pre_only else self.context_block.post_attention(text, text_kept)
        return after, self.x_block.post_attention(image, image_kept)


class ReferenceMMDiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x_embedder, self.context_embedder = nn.Conv2d(CHANNELS, WIDTH, 2, stride=2), nn.Linear(7, WIDTH)
        self.t_embedder, self.y_embedder = nn.Linear(WIDTH, WIDTH), nn.Linear(5, WIDTH)
        self.joint_blocks = nn.ModuleList(MixingBlock(last) for last in (False, False, True))
        self.final_layer = FinalLayer(4 * CHANNELS)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.x_embedder(x)
        height, width = x.shape[-2:]
        c, x = self.t_embedder(sinusoidal(t)) + self.y_embedder(y), x.flatten(2).mT
        context = self.context_embedder(context)
        for block in self.joint_blocks:
            context, x = block(context, x, c)
        return to_image(self.final_layer(x, c), height, width)


# PixArt's own code: prompts of a batch packed into one sequence, whose lengths the host reads -------------------------


class PackedCrossAttention(nn.Module):
    """All images' queries against all prompts' keys, as block-diagonal attention of xformers is written in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.q_linear, self.kv_linear = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, cond: Tensor, lengths: list[int]) -> Tensor:
        images, tokens, _ = x.shape
        query = self.q_linear(x).reshape(1, -1, 2, WIDTH // 2).transpose(1, 2)
        key, value = self.kv_linear(cond).reshape(1, -1, 2, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        own = torch.block_diag(*(torch.ones(tokens, length) for length in lengths)).bool().to(x.device)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=own)
        return self.proj(found.transpose(1, 2).reshape(images, tokens, WIDTH))


class PixArtBlock(nn.Module):
    def __init__(self, attention: type[nn.Module] = Attention) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.attn, self.cross_attn, self.mlp = attention(), PackedCrossAttention(), Mlp()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, WIDTH))

    def forward(self, x: Tensor, y: Tensor, t: Tensor, lengths: list[int]) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = (self.scale_shift_table[None] + t.unflatten(1, (6, -1))).split(1, 1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift)
        x = x + self.cross_attn(x, y, lengths)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class PackedPixArt(nn.Module):
    def __init__(self, attention: type[nn.Module] = Attention) -> None:
        super().__init__()
        self.x_embedder, self.y_embedder = nn.Conv2d(CHANNELS, WIDTH, 2, stride=2), nn.Linear(7, WIDTH)
        self.t_embedder, self.t_block = nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.blocks = nn.ModuleList(PixArtBlock(attention) for _ in range(3))
        self.final_layer = FinalLayer(4 * 2 * CHANNELS)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        x = self.x_embedder(x)
        height, width = x.shape[-2:]
        x, t = x.flatten(2).mT, self.t_embedder(sinusoidal(timestep))
        y = self.y_embedder(y.squeeze(1))
        y = y.masked_select(mask.unsqueeze(-1) != 0).view(1, -1, WIDTH)
        lengths = mask.sum(dim=1).tolist()
        for block in self.blocks:
            x = block(x, y, self.t_block(t), lengths)
        return to_image(self.final_layer(x, t), height, width)


class CompressedAttention(Attention):
    """PixArt-Sigma: keys and values of each 2 x 2 tokens become one."""

    def __init__(self) -> None:
        super().__init__()
        self.sr = nn.Conv2d(WIDTH, WIDTH, 2, stride=2, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        key, value = (self.sr(part.mT.unflatten(2, (4, 6))).flatten(2).mT for part in (key, value))
        heads = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (query, key, value))
        return self.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class WindowedAttention(Attention):
    """Tokens attend within windows of 2 x 2."""

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(1, (2, 2, 3, 2)).transpose(2, 3).reshape(-1, 4, WIDTH)
        found = super().forward(windows).reshape(len(x), 2, 3, 2, 2, WIDTH)
        return found.transpose(2, 3).reshape(x.shape)


class MaskedWindows(Attention):
    """The same windows as a mask over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        window = torch.arange(24).view(4, 6) // 6 // 2 * 3 + torch.arange(6) // 2
        self.register_buffer("mask", window.flatten()[:, None] == window.flatten())

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value, attn_mask=self.mask)
        return self.proj(found.transpose(1, 2).flatten(2))


# Videos: attention within each frame, then along time at each place ---------------------------------------------------


class SpaceTimeDiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x_embedder = nn.Conv3d(CHANNELS, WIDTH, (1, 2, 2), stride=(1, 2, 2))
        self.t_embedder = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.final_layer = FinalLayer(4 * CHANNELS)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.x_embedder(x)
        images, _, frames, height, width = x.shape
        x, c = x.flatten(3).permute(0, 2, 3, 1).flatten(0, 1), self.t_embedder(sinusoidal(t))
        for block in self.blocks[::2]:
            x = block(x, c.repeat_interleave(frames, 0))
        x = x.unflatten(0, (images, frames)).transpose(1, 2).flatten(0, 1)
        for block in self.blocks[1::2]:
            x = block(x, c.repeat_interleave(height * width, 0))
        x = x.unflatten(0, (images, height * width)).transpose(1, 2).flatten(0, 1)
        x = to_image(self.final_layer(x, c.repeat_interleave(frames, 0)), height, width)
        return x.unflatten(0, (images, frames)).transpose(1, 2)


def classed(time: float = 500.0, seed: int = 0) -> dict[str, Any]:
    """Arguments of U-ViT."""
    given = labelled(time, seed)
    return {"x": given["x"], "timesteps": given["t"], "y": given["y"]}


def pooled(time: float = 500.0, seed: int = 0) -> dict[str, Any]:
    """Arguments of the reference MMDiT."""
    given = labelled(time, seed)
    return {"x": given["x"], "t": given["t"], "y": noise(2, 5), "context": noise(2, 5, 7, seed=3)}


def packed(time: float = 500.0, seed: int = 0) -> dict[str, Any]:
    """Arguments of PixArt: prompts of 4 and of 6 tokens, padded."""
    given = labelled(time, seed)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    return {"x": given["x"], "timestep": given["t"], "y": noise(2, 1, LONGEST, 7), "mask": mask}


def film(time: float = 500.0, seed: int = 0) -> dict[str, Any]:
    """Arguments of the video model: 3 frames."""
    return {"x": noise(2, CHANNELS, 3, 8, 12, seed=seed), "t": labelled(time)["t"]}
