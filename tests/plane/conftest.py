"""Steps of a tiny model, as a sampler makes them, but with inputs that do not depend on the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

GRID = (3, 4)


@dataclass(frozen=True)
class Steps:
    """The calls of one generation: latents that drift and tremble, timesteps out of a table.

    Args:
        model: SD3 or PixArt.
        latents: latents [B, C, height, width] of each step.
        given: the condition, a tensor of text [B, T, 16] among it.
        table: the sampler's timesteps.
    """

    model: nn.Module
    latents: tuple[Tensor, ...]
    given: Any
    table: Tensor

    def call(self, step: int, return_dict: bool = False) -> Any:
        """What the model returns at a step."""
        latents = self.latents[step]
        shared = {
            "hidden_states": latents,
            "timestep": self.table[step].expand(len(latents)),
            "encoder_hidden_states": self.given.text,
            "return_dict": return_dict,
        }
        with torch.no_grad():
            if hasattr(self.model, "context_embedder"):
                return self.model(pooled_projections=self.given.pooled, **shared)
            extra = {"resolution": None, "aspect_ratio": None}
            return self.model(encoder_attention_mask=self.given.mask, added_cond_kwargs=extra, **shared)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.call(step)[0] for step in range(len(self.table)))


@pytest.fixture(scope="session")
def make_steps(make_latents: Callable[..., Tensor], make_condition: Callable[..., Any]) -> Callable[..., Steps]:
    def make(
        model: nn.Module, images: int = 1, steps: int = 9, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> Steps:
        seeds = [tuple(seed + 100 * step + image for image in range(images)) for step in range(steps + 2)]
        start, end, *noise = (make_latents(drawn, GRID) for drawn in seeds)
        latents = tuple((torch.lerp(start, end, i / steps) + 0.05 * noise[i]).to(dtype) for i in range(steps))
        table = torch.linspace(1000, 100, steps) - torch.arange(steps) % 3 * 7
        return Steps(model, latents, make_condition(seeds[0], 5, dtype), table)

    return make


@pytest.fixture(scope="session", params=["sd3", "pixart"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param
