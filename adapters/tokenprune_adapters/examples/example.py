"""What is to be known of a pipeline to call its transformer without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

MEGAPIXEL = (1024, 1024)
"""Height and width of the pictures that most models make."""


Calls = Literal["batched", "separate", "none"]
"""Classifier-free guidance: both halves in one call, a call for each branch, or none (or a distilled one)."""


@dataclass(frozen=True)
class Latents:
    """Extents of a call: B = `batch` rows of latents [frames, height, width] and T = `text` tokens.

    `patch` is the extent of an image token, in latents; `frame_patch` is its extent in time.
    """

    batch: int
    frames: int
    height: int
    width: int
    text: int
    patch: int
    frame_patch: int = 1

    @property
    def rows(self) -> int:
        """Rows of the token grid."""
        return self.height // self.patch

    @property
    def columns(self) -> int:
        """Columns of the token grid."""
        return self.width // self.patch

    @property
    def times(self) -> int:
        """Token grids one behind the other."""
        return self.frames // self.frame_patch

    @property
    def tokens(self) -> int:
        """N, image tokens."""
        return self.times * self.rows * self.columns


@dataclass(frozen=True)
class Example:
    """How a pipeline calls its transformer.

    Attributes:
        make: the arguments of a call, from the model and the extents; tensors hold nothing of meaning, masks are full.
        guidance: how the pipeline calls the model for classifier-free guidance.
        text: text tokens, what the pipeline pads or cuts a prompt to.
        size: height and width of a picture in pixels where the user asks for none; None: from the model's config.
        scale: pixels for each row or column of latents.
        patch: extent of a token in latents: a number where the pipeline packs them, else the name of its config entry.
        frames: frames of a video where the user asks for none, 1 for pictures.
        frame_scale: frames for each frame of latents.
    """

    make: Callable[[nn.Module, Latents], dict[str, Any]]
    guidance: Calls = "batched"
    text: int = 512
    size: tuple[int, int] | None = None
    scale: int = 8
    patch: int | str = "patch_size"
    frames: int = 1
    frame_scale: int = 1

    def latents(
        self,
        model: nn.Module,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        text: int | None = None,
        batch: int = 1,
        scale: int | None = None,
    ) -> Latents:
        """The extents of a call for pictures of height x width pixels; None takes the model's own.

        Args:
            model: the transformer.
            height: in pixels.
            width: in pixels.
            frames: of a video.
            text: text tokens.
            batch: rows of the call, both guidance halves counted.
            scale: pixels for each row or column of latents, of a pipeline with an autoencoder of its own.

        Raises:
            ValueError: height or width is not a whole number of tokens, or a picture is to have several frames.
        """
        config: Any = model.config
        scale = scale or self.scale
        patch, frame_patch = self._patches(model)
        own = self._own_size(model, scale)
        height, width = height or own[0], width or own[1]
        for name, pixels in (("height", height), ("width", width)):
            if pixels < 1 or pixels % (scale * patch):
                raise ValueError(
                    f"{name}: expected a multiple of {scale * patch} pixels ({scale} to a latent, {patch} latents to a "
                    f"token), got {pixels}"
                )
        if self.frames == 1 and (frames or 1) != 1:
            raise ValueError(f"frames: expected 1, as {type(model).__name__} makes pictures, got {frames}")
        length = math.ceil((frames or self.frames) / self.frame_scale)
        together = frame_patch * int(config.get("num_frame_per_block") or 1)
        length = math.ceil(length / together) * together
        text = self.text if text is None else text
        return Latents(batch, length, height // scale, width // scale, text, patch, frame_patch)

    def arguments(
        self, model: nn.Module, latents: Latents, device: str | torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """The arguments of a call by name, floating-point tensors in `dtype`."""
        with torch.device(device):
            made = self.make(model, latents)

        def cast(leaf: Any) -> Any:
            return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return tree_map(cast, made)

    def _patches(self, model: nn.Module) -> tuple[int, int]:
        config: Any = model.config
        found = self.patch if isinstance(self.patch, int) else config[self.patch]
        sizes = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        in_time = sizes[0] if len(sizes) == 3 else config.get("patch_size_t") or 1
        return int(sizes[-1]), int(in_time)

    def _own_size(self, model: nn.Module, scale: int) -> tuple[int, int]:
        config: Any = model.config
        if self.size is not None:
            return self.size
        side = config.get("sample_size")
        found = config.get("sample_height", side), config.get("sample_width", side)
        if None in found:
            raise ValueError("height, width: expected a size in pixels, as the model's config has no sample_size")
        return int(found[0]) * scale, int(found[1]) * scale


def zeros(*shape: int) -> Tensor:
    """Noise, texts and other floating-point arguments."""
    return torch.zeros(shape)


def full(*shape: int) -> Tensor:
    """A mask of texts of full length."""
    return torch.ones(shape, dtype=torch.bool)


def times(latents: Latents) -> Tensor:
    """Timesteps [B]."""
    return torch.full((latents.batch,), 500.0)


def angles(count: int, channels: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, D] of rotary embeddings."""
    return zeros(count, channels), zeros(count, channels)


def ids(latents: Latents, columns: int = 3) -> Tensor:
    """Positions [N, columns] of the tokens of a picture, row and column behind the picture's number."""
    found = zeros(latents.rows, latents.columns, columns)
    found[..., 1] += torch.arange(latents.rows)[:, None]
    found[..., 2] += torch.arange(latents.columns)
    return found.flatten(0, 1)
