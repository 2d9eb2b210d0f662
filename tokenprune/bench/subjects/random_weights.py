"""Models at their published sizes with random weights: how long a step takes does not depend on what was learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn

PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class Shape:
    """A transformer at its published size.

    Attributes:
        kind: its class.
        config: of its constructor.
        conditions: what its forward takes beside `hidden_states` and `timestep`, for a batch of that size.
    """

    kind: type[nn.Module]
    config: Mapping[str, Any]
    conditions: Callable[[int], dict[str, Any]]

    def build(self, layers: int | None = None) -> nn.Module:
        """The model on torch's default device; with fewer blocks than its own, if asked."""
        return self.kind(**{**self.config, **({} if layers is None else {"num_layers": layers})})


def _sd3_conditions(batch: int) -> dict[str, Any]:
    return {"encoder_hidden_states": torch.randn(batch, 333, 4096), "pooled_projections": torch.randn(batch, 2048)}


def _pixart_conditions(batch: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(batch, 300, 4096),
        "encoder_attention_mask": torch.ones(batch, 300),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


SHAPES = {
    "sd3-medium": Shape(
        SD3Transformer2DModel,
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "out_channels": 16,
            "pos_embed_max_size": 192,
        },
        _sd3_conditions,
    ),
    "pixart-sigma": Shape(
        PixArtTransformer2DModel,
        {
            "sample_size": 128,
            "num_layers": 28,
            "attention_head_dim": 72,
            "num_attention_heads": 16,
            "in_channels": 4,
            "out_channels": 8,
            "patch_size": 2,
            "caption_channels": 4096,
            "cross_attention_dim": 1152,
            "use_additional_conditions": False,
        },
        _pixart_conditions,
    ),
}


class RandomPipeline:
    """Calls a transformer with random weights as a pipeline does: a sampler's steps under classifier-free guidance.

    Prompts count and are not read; there is no text encoder and no decoder, and pictures are the first three channels
    of the latents.

    Args:
        name: of SHAPES.
        layers: blocks; None is the model's own number.
        device: of the weights.
        dtype: of the weights.
    """

    def __init__(
        self, name: str, layers: int | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(0)
        shape = SHAPES[name]
        with torch.device(device):
            self.transformer: Any = shape.build(layers).to(dtype).eval()
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self._conditions = shape.conditions
        self._to: dict[str, Any] = {"device": device, "dtype": dtype}

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int = 28,
        guidance_scale: float = 7.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        height: int = 1024,
        width: int = 1024,
        output_type: str = "np",
    ) -> Any:
        """Pictures [P, height / 8, width / 8, 3] between 0 and 1, as `images`."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        given = generator if isinstance(generator, Sequence) else [generator] * len(prompts)
        size = (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        channels = self.transformer.config.in_channels
        latents = torch.stack([torch.randn(channels, *size, generator=source) for source in given]).to(**self._to)
        conditions = self._conditioned(2 * len(prompts))
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        for time in self.scheduler.timesteps:
            both = torch.cat([latents] * 2)
            noise = self.transformer(hidden_states=both, timestep=time.expand(len(both)), **conditions).sample
            without, with_prompt = noise[:, :channels].chunk(2)
            guided = without + guidance_scale * (with_prompt - without)
            latents = self.scheduler.step(guided, time, latents, return_dict=False)[0]
        pictures = latents[:, :3].float().sigmoid().movedim(1, -1).cpu()
        return SimpleNamespace(images=pictures.numpy() if output_type == "np" else pictures)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Pipelines of diffusers have one; this has no bar."""

    @property
    def _execution_device(self) -> torch.device:
        return torch.device(self._to["device"])

    def _conditioned(self, batch: int) -> dict[str, Any]:
        torch.manual_seed(1)
        conditions = self._conditions(batch)
        return {
            name: value.to(**self._to) if isinstance(value, Tensor) else value for name, value in conditions.items()
        }
