"""Small pipelines, new for each test, and pictures (latents) of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline
from small import make_pixart, make_sd3
from torch import Tensor, nn

from tokenprune import CATPolicy

STEPS, WARMUP, TOKENS = 6, 3, 64
POLICY = CATPolicy(alpha=0.3, warmup_steps=WARMUP, num_clusters=5)
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "StableDiffusion3": {"max_sequence_length": 1},
    "PixArtSigma": {"max_sequence_length": 8, "use_resolution_binning": False, "clean_caption": False},
}


def _draw(pipe: DiffusionPipeline, seed: int = 0, **arguments: Any) -> Tensor:
    given = next(given for name, given in ARGUMENTS.items() if type(pipe).__name__.startswith(name))
    shared = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"}
    sizes = {} if "image" in arguments else {"height": 32, "width": 32}
    wanted = {"prompt": "a red circle on a green background"} | given | shared | sizes | arguments
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # control images are encoded with noise that no generator can be given for
        return pipe(generator=torch.Generator().manual_seed(seed), **wanted).images


def _marks(model: nn.Module) -> dict[str, Any]:
    """Everything of ours or anybody's that hangs on the modules: attributes by name, hooks by number."""
    return {
        name: (sorted(module.__dict__), [sorted(getattr(module, kind)) for kind in HOOKS])
        for name, module in model.named_modules()
    }


@pytest.fixture
def sd3() -> StableDiffusion3Pipeline:
    return make_sd3()


@pytest.fixture
def pixart() -> PixArtSigmaPipeline:
    return make_pixart()


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
    return _draw


@pytest.fixture(scope="session")
def marks() -> Callable[[nn.Module], dict[str, Any]]:
    return _marks
