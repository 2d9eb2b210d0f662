"""Fixtures shared by all tests: tiny models, and generations on them."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    AttentionRankPolicy,
    CATPolicy,
    ClusterRandomPolicy,
    DensePolicy,
    ErrorControlledPolicy,
    MixturePolicy,
    NoisePolicy,
    NoiseStalenessPolicy,
    RandomPolicy,
    RegionAdaptivePolicy,
    SelectionPolicy,
    SequentialPolicy,
    TocaPolicy,
)

settings.register_profile(
    "tokenprune",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("tokenprune")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KINDS = ("sd3", "sd3-plain", "pixart")
WARMUP = 3
POLICIES = {
    "cat": CATPolicy(0.3, WARMUP, num_clusters=5),
    "cat-published": CATPolicy.published(0.3, WARMUP),
    "noise": NoisePolicy(0.3, WARMUP),
    "noise-staleness": NoiseStalenessPolicy(0.3, WARMUP),
    "sequential": SequentialPolicy(0.3, WARMUP),
    "random": RandomPolicy(0.3, WARMUP),
    "dense": DensePolicy(),
    "error-controlled": ErrorControlledPolicy(0.3, WARMUP),
    "ras": RegionAdaptivePolicy(0.3, WARMUP),
    "cluster-random": ClusterRandomPolicy(0.3, WARMUP, num_clusters=5),
    "mixture": MixturePolicy(0.3, WARMUP, parts=((NoisePolicy(), 1), (SequentialPolicy(), 2))),
    "at-edm": AttentionRankPolicy(0.3, WARMUP, staleness=1.0),
    "toca": TocaPolicy(0.3, WARMUP),
}
STEPS_GRID = (3, 4)
WIDTH, CHANNELS, TEXT_WIDTH = 32, 4, 16


@dataclass(frozen=True)
class Condition:
    """What guides a generation: text [B, T, 16], its pooled form [B, 16] and its mask [B, T]."""

    text: Tensor
    pooled: Tensor
    mask: Tensor

    @classmethod
    def of_seeds(cls, seeds: tuple[int, ...], length: int, dtype: torch.dtype = torch.float32) -> Condition:
        text, pooled, mask = [], [], []
        for seed in seeds:
            generator = torch.Generator().manual_seed(1000 + seed)
            text.append(torch.randn(length, TEXT_WIDTH, generator=generator))
            pooled.append(torch.randn(TEXT_WIDTH, generator=generator))
            mask.append((torch.arange(length) < max(1, length - seed % 3)).float())
        return cls(torch.stack(text).to(dtype), torch.stack(pooled).to(dtype), torch.stack(mask).to(dtype))

    def __add__(self, other: Condition) -> Condition:
        pairs = ((self.text, other.text), (self.pooled, other.pooled), (self.mask, other.mask))
        return Condition(*(torch.cat(pair) for pair in pairs))


def _make_model(kind: str, layers: int = 3) -> nn.Module:
    from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "pixart":
            return PixArtTransformer2DModel(
                num_attention_heads=4,
                attention_head_dim=8,
                in_channels=CHANNELS,
                out_channels=2 * CHANNELS,
                num_layers=2,
                cross_attention_dim=WIDTH,
                sample_size=16,
                caption_channels=TEXT_WIDTH,
                use_additional_conditions=False,
            ).eval()
        return SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=layers,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            pos_embed_max_size=32,
            dual_attention_layers=(0,) if kind == "sd3" else (),
            qk_norm="rms_norm" if kind == "sd3" else None,
        ).eval()


def _predict(model: nn.Module, latents: Tensor, timestep: Tensor | float, given: Condition, **options: Any) -> Tensor:
    shared = {"timestep": timestep, "encoder_hidden_states": given.text, "return_dict": False, **options}
    if hasattr(model, "context_embedder"):
        return model(hidden_states=latents, pooled_projections=given.pooled, **shared)[0]
    extra = {"resolution": None, "aspect_ratio": None}
    return model(hidden_states=latents, encoder_attention_mask=given.mask, added_cond_kwargs=extra, **shared)[0][:, :4]


def _latents(seeds: tuple[int, ...], grid: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (CHANNELS, 2 * grid[0], 2 * grid[1])
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(dtype)


def _generate(
    model: nn.Module,
    *,
    seeds: tuple[int, ...] = (0,),
    prompts: tuple[int, ...] | None = None,
    steps: int = 6,
    stop: int | None = None,
    guidance: Literal["batched", "sequential", "none"] = "batched",
    grid: tuple[int, int] = (4, 6),
    length: int = 5,
    times: Literal["table", "fresh"] = "table",
    table: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Latents [steps, B, C, height, width] after every step of a generation; every image has its own seed."""
    latents = _latents(seeds, grid, dtype)
    cond = Condition.of_seeds(prompts or seeds, length, dtype)
    uncond = Condition.of_seeds((99_000,) * len(seeds), length, dtype)
    both = uncond + cond
    table = torch.linspace(1000, 20, steps) if table is None else table
    history = []
    with torch.no_grad():
        for time in table[:stop]:
            batch = len(seeds) * (2 if guidance == "batched" else 1)
            timestep = time.expand(batch) if times == "table" else torch.full((batch,), float(time))
            if guidance == "batched":
                base, aim = _predict(model, torch.cat([latents, latents]), timestep, both).chunk(2)
            elif guidance == "sequential":
                aim, base = (_predict(model, latents, timestep, given) for given in (cond, uncond))
            else:
                base = aim = _predict(model, latents, timestep, cond)
            latents = latents - 0.2 * (base + 3 * (aim - base))
            history.append(latents)
    return torch.stack(history)


def _generate_fresh(model: nn.Module, policy: SelectionPolicy, **wanted: Any) -> Tensor:
    """The same generation under a handle that has served no other one."""
    with tokenprune.apply(model, policy):
        return _generate(model, **wanted)


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=POLICIES.values(), ids=POLICIES.keys())
def policy(request: pytest.FixtureRequest) -> SelectionPolicy:
    return request.param


@pytest.fixture(scope="session")
def make_model() -> Callable[..., nn.Module]:
    return _make_model


@pytest.fixture
def model(kind: str) -> nn.Module:
    return _make_model(kind)


@pytest.fixture
def sd3() -> nn.Module:
    return _make_model("sd3")


@pytest.fixture
def pixart() -> nn.Module:
    return _make_model("pixart")


@pytest.fixture(scope="session")
def predict() -> Callable[..., Tensor]:
    return _predict


@pytest.fixture(scope="session")
def make_latents() -> Callable[..., Tensor]:
    return _latents


@pytest.fixture(scope="session")
def make_condition() -> Callable[..., Condition]:
    return Condition.of_seeds


@pytest.fixture(scope="session")
def generate() -> Callable[..., Tensor]:
    return _generate


@pytest.fixture(scope="session")
def generate_fresh() -> Callable[..., Tensor]:
    return _generate_fresh


@pytest.fixture(autouse=True)
def no_mode_left() -> Iterator[None]:
    """No test, whatever it raises, may leave a mode on torch's stack."""
    yield
    left = torch.overrides._get_current_function_mode_stack()
    for _ in left:
        torch.overrides._pop_mode()
    assert not left


@dataclass(frozen=True)
class Steps:
    """The calls of one generation, as a sampler makes them, but with inputs that do not depend on the outputs.

    Latents drift and tremble; timesteps come out of a table.

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
        start, end, *noise = (make_latents(drawn, STEPS_GRID) for drawn in seeds)
        latents = tuple((torch.lerp(start, end, i / steps) + 0.05 * noise[i]).to(dtype) for i in range(steps))
        table = torch.linspace(1000, 100, steps) - torch.arange(steps) % 3 * 7
        return Steps(model, latents, make_condition(seeds[0], 5, dtype), table)

    return make


@pytest.fixture(scope="session", params=["sd3", "pixart"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def two_processes() -> list[str]:
    """The words that start a script or module, which come behind them, in two processes on the CPU."""
    from accelerate.commands import launch

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]  # of its own, as other tests may run at the same time
    settings = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    options = {**settings, "main_process_port": port}.items()
    given = (word for name, value in options for word in (f"--{name}", str(value)))
    return [sys.executable, launch.__file__, "--multi_gpu", *given]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser, for a module of tests: while it runs, nothing else can run an event loop."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser to test in: playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser to test in: none of {', '.join(BROWSERS)} is installed (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=["--no-sandbox"])  # root has no sandbox
        yield started
        started.close()
