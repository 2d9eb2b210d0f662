"""Diffusion transformers in plain PyTorch, as researchers write them, and models that cannot be pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, WIDTH, CHANNELS, TEXT = 2, 16, 4, 5


class Attention(nn.Module):
    """Fused projection, as timm has it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = nn.LayerNorm(WIDTH // 2), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value)
        return self.proj(found.transpose(1, 2).flatten(2))


class SoftmaxAttention(Attention):
    """The same, written out."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ConvMlp(Mlp):
    """A depthwise convolution over the token grid between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1, groups=2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x).transpose(1, 2).unflatten(2, (4, 6))
        return self.fc2(F.gelu(self.dwconv(hidden).flatten(2).transpose(1, 2)))


class Block(nn.Module):
    def __init__(self, attention: type[nn.Module] = Attention, mlp: type[nn.Module] = Mlp) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.attn, self.mlp = attention(), mlp()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).unsqueeze(1).chunk(6, -1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH, elementwise_affine=False), nn.Linear(WIDTH, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, -1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class DiT(nn.Module):
    """The original's signature: x [B, C, height, width], t [B], y [B]; twice the channels come out."""

    def __init__(
        self, attention: type[nn.Module] = Attention, mlp: type[nn.Module] = Mlp, variance: bool = True
    ) -> None:
        super().__init__()
        self.out = 2 * CHANNELS
        self.x_embedder, self.y_embedder = nn.Conv2d(CHANNELS, WIDTH, 2, stride=2), nn.Embedding(11, WIDTH)
        self.t_embedder = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 24, WIDTH))
        self.blocks = nn.ModuleList(Block(attention, mlp) for _ in range(3))
        self.final_layer = FinalLayer(4 * self.out)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        hidden = self.x_embedder(x)
        height, width = hidden.shape[-2:]
        hidden = hidden.flatten(2).transpose(1, 2) + self.pos_embed
        condition = self.t_embedder(t.float().unsqueeze(1) / 1000) + self.y_embedder(y)
        for block in self.blocks:
            hidden = block(hidden, condition)
        tokens = self.final_layer(hidden, condition).unflatten(1, (height, width)).unflatten(3, (2, 2, self.out))
        return torch.einsum("nhwpqc->nchpwq", tokens).reshape(len(x), self.out, 2 * height, 2 * width)


class Centring(DiT):
    """Below a timestep its second block sees tokens without their mean."""

    late = False

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].register_forward_pre_hook(self.centred)

    def centred(self, _: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, c = args
        return (x - x.mean(1, keepdim=True) if self.late else x), c

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.late = bool((t < 300).any())
        return super().forward(x, t, y)


class SiT(DiT):
    """Its wrapper: keeps the first half of the channels."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, t, y)[:, :CHANNELS]


class JointBlock(nn.Module):
    """Text and image attend to each other; rotary embeddings come as a table of the image's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.image_qkv, self.text_qkv = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.image_out, self.text_out = Mlp(), Mlp()

    def forward(self, txt: Tensor, img: Tensor, angles: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        image, text = self.image_qkv(img + vec.unsqueeze(1)), self.text_qkv(txt + vec.unsqueeze(1))
        image = torch.cat([image[..., : 2 * WIDTH] * angles.cos().repeat(1, 2), image[..., 2 * WIDTH :]], dim=-1)
        query, key, value = torch.cat([text, image], 1).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return txt + self.text_out(found[:, : txt.shape[1]]), img + self.image_out(found[:, txt.shape[1] :])


class MMDiT(nn.Module):
    """Joint attention written in the block itself, blocks that are attributes, latents with their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.img_in, self.txt_in = nn.Linear(4 * CHANNELS, WIDTH), nn.Linear(7, WIDTH)
        self.time_in = nn.Linear(1, WIDTH)
        self.block_a, self.block_b = JointBlock(), JointBlock()
        self.head = nn.Linear(WIDTH, 4 * CHANNELS)

    def forward(self, sigma: Tensor, image: Tensor, context: Tensor) -> dict[str, Tensor]:
        batch, height, width, _ = image.shape
        patches = image.reshape(batch, height // 2, 2, width // 2, 2, CHANNELS).permute(0, 1, 3, 2, 4, 5)
        img, txt = self.img_in(patches.flatten(3).flatten(1, 2)), self.txt_in(context)
        angles = torch.arange(img.shape[1])[:, None] * torch.linspace(0.05, 0.9, WIDTH)
        vec = self.time_in(sigma.unsqueeze(1))
        for block in (self.block_a, self.block_b):
            txt, img = block(txt, img, angles, vec)
        patches = self.head(img).unflatten(1, (height // 2, width // 2)).unflatten(3, (2, 2, CHANNELS))
        return {"sample": patches.permute(0, 1, 3, 2, 4, 5).reshape(image.shape)}


class Recurrent(nn.Module):
    """No attention at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.final = nn.Linear(CHANNELS, WIDTH), nn.GRU(WIDTH, WIDTH), nn.Linear(WIDTH, CHANNELS)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2).transpose(1, 2)) + t.view(-1, 1, 1)
        return self.final(self.rnn(tokens)[0]).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """Attention at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(CHANNELS, WIDTH, 1), nn.Conv2d(WIDTH, CHANNELS, 1)
        self.levels = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = self.down(x) + t.view(-1, 1, 1, 1)
        for level in self.levels:
            mixed = level(hidden.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(hidden.shape)
            hidden = F.avg_pool2d(hidden + mixed, 2)
        return F.interpolate(self.up(hidden), x.shape[-2:])


def randomised(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with random parameters everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        for parameter in model.parameters():
            parameter.data.normal_().mul_(0.7 * (1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5))
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labelled(time: float = 500.0, seed: int = 0) -> dict[str, Any]:
    """Arguments of the class-conditional models."""
    return {"x": noise(B, CHANNELS, 8, 12, seed=seed), "t": torch.full((B,), time), "y": torch.tensor([3, 7])}


def unlabelled(time: float = 500.0, seed: int = 0) -> dict[str, Any]:
    given = labelled(time, seed)
    return {"x": given["x"], "t": given["t"]}


def prompted(time: float = 0.5, seed: int = 0) -> dict[str, Any]:
    """Arguments of the text-conditional one."""
    return {
        "sigma": torch.full((B,), time),
        "image": noise(B, 8, 12, CHANNELS, seed=seed),
        "context": noise(B, TEXT, 7),
    }


def example() -> tuple[nn.Module, dict[str, Any]]:
    """For the command line."""
    return randomised(DiT), labelled()


def hopeless() -> tuple[nn.Module, dict[str, Any]]:
    """For the command line, too."""
    return randomised(Recurrent), unlabelled()
