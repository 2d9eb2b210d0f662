"""What a small model of the tests is, and the pieces that calls and configurations are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

B, T, TEXT = 2, 5, 16
"""Images, text tokens and text channels of all calls."""

GUIDED = "one call, unconditional half first"
COND_FIRST = "one call, conditional half first"
TWICE = "a call for each branch"
ONCE = "distilled, one call"

times = torch.tensor([500.0, 500.0])
square = {"num_attention_heads": 2, "attention_head_dim": 8}
joint_config = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": TEXT, **square}


@dataclass(frozen=True)
class Tiny:
    """A small model.

    Attributes:
        name: what the tests call it.
        model: the class, by name.
        config: its arguments.
        inputs: makes the arguments of a call.
        pipelines: where it is used.
        guidance: how the pipelines call it.
        notes: anything else.
        image_of: one image's share of the inputs; None where all of them have the images in their first dimension.
    """

    name: str
    model: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    pipelines: str
    guidance: str
    notes: str = ""
    image_of: Callable[[Any, int], Any] | None = None

    def make(self) -> nn.Module:
        """The model, all of its parameters random: many start with layers of zeros, which hide everything."""
        import diffusers

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(diffusers, self.model)(**self.config).eval()
            for parameter in model.parameters():
                scale = 1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.data.normal_().mul_(0.7 * scale).add_(0.3 if parameter.ndim == 1 else 0)
        return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def mask(length: int = T) -> Tensor:
    """Two texts, the second one token shorter."""
    return torch.tensor([[True] * length, [True] * (length - 1) + [False]])


def ids(*extents: int, offset: int = 0, group: float = 0, columns: int = 3) -> Tensor:
    """Positions [N, columns] of the tokens of an image, behind a column for the image's number."""
    axes = torch.meshgrid(*(torch.arange(extent) + offset for extent in extents), indexing="ij")
    found = torch.stack([axis.flatten() for axis in axes], dim=1)
    first, last = torch.full((len(found), 1), int(group)), torch.zeros(len(found), columns - 1 - found.shape[1])
    return torch.cat([first, found, last], dim=1).float()


def halves(frames: int, height: int, width: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, dim] of positions."""
    angles = noise(frames * height * width, dim)
    return angles.cos(), angles.sin()


def rows_of(*names: str, **others: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Says that arguments have the images in their first dimension, or where else they have them."""

    def image_of(inputs: Any, image: int) -> Any:
        found = {name: inputs[name][image : image + 1] for name in names}
        return {**inputs, **found, **{name: take(inputs[name], image) for name, take in others.items()}}

    return image_of


def video(frames: int = 3, channels: int = 4, **more: Any) -> dict[str, Any]:
    """Latents [B, C, frames, 6, 8] and what most models take besides."""
    return {
        "hidden_states": noise(B, channels, frames, 6, 8),
        "encoder_hidden_states": noise(B, T, TEXT),
        "timestep": times,
        **more,
    }
