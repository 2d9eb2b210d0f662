"""Small pipelines, new for each test, and pictures (latents) of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import small
from diffusers import DiffusionPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn

from tokenprune import CATPolicy

WARMUP = 3
POLICY = CATPolicy(alpha=0.3, warmup_steps=WARMUP, num_clusters=5)
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def _marks(model: nn.Module) -> dict[str, Any]:
    """Everything of ours or anybody's that hangs on the modules: attributes by name, hooks by number."""
    return {
        name: (sorted(module.__dict__), [sorted(getattr(module, kind)) for kind in HOOKS])
        for name, module in model.named_modules()
    }


@pytest.fixture
def sd3() -> StableDiffusion3Pipeline:
    return small.make_sd3()


@pytest.fixture
def pixart() -> PixArtSigmaPipeline:
    return small.make_pixart()


@pytest.fixture(params=["sd3", "pixart"])
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def guest_policy() -> CATPolicy:
    """Three full steps, then 19 of 64 tokens."""
    return POLICY


@pytest.fixture(scope="session")
def draw() -> Callable[..., Tensor]:
    """Latents [B, 4, 16, 16] that a pipeline draws from a seed, in six steps unless told otherwise."""
    return small.draw


@pytest.fixture(scope="session")
def marks() -> Callable[[nn.Module], dict[str, Any]]:
    return _marks
