"""What users hand to `apply`: models that are none of ours are refused, wrapped ones are found in their wrappers."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, T5Config, T5EncoderModel
from versions import needs

import tokenprune
from tokenprune import NoisePolicy, UnknownModelError, UnsupportedModelError
from tokenprune.targets import PARTS, target_of, transformer_of, unwrapped

pytestmark = pytest.mark.filterwarnings("ignore:FSDP is switching:UserWarning")
POLICY = NoisePolicy(0.3, 3)
SMALL = {"block_out_channels": (8, 8), "norm_num_groups": 4}


class OfResearch(nn.Module):
    """An autoencoder, or a U-Net, of no library."""

    def __init__(self, *children: str) -> None:
        super().__init__()
        for name in children:
            self.add_module(name, nn.ModuleList([nn.Linear(2, 2)]))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x


def clip(kind: type) -> dict[str, Any]:
    return {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vae": (
        lambda: AutoencoderKL(
            **SMALL, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
        ),
        "AutoencoderKL: expected a diffusion transformer, got an autoencoder: it is called once",
    ),
    "tiny vae": (lambda: AutoencoderTiny(encoder_block_out_channels=(8,) * 4), "AutoencoderTiny: .* an autoencoder"),
    "vae of research": (lambda: OfResearch("encoder", "decoder"), "OfResearch: .* an autoencoder"),
    "unet": (
        lambda: UNet2DConditionModel(
            **SMALL,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
        ),
        "UNet2DConditionModel: expected a diffusion transformer, got a U-Net: its blocks work at several resolutions",
    ),
    "plain unet": (
        lambda: UNet2DModel(**SMALL, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2),
        "UNet2DModel: .* a U-Net",
    ),
    "unet of research": (lambda: OfResearch("input_blocks", "output_blocks"), "OfResearch: .* a U-Net"),
    "text encoder": (
        lambda: CLIPTextModel(CLIPTextConfig(**clip(CLIPTextConfig), vocab_size=10)),
        "CLIPTextModel: .* an encoder of text",
    ),
    "T5": (
        lambda: T5EncoderModel(T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=2, d_kv=4, vocab_size=10)),
        "T5EncoderModel: .* an encoder of text",
    ),
    "image encoder": (
        lambda: CLIPVisionModel(CLIPVisionConfig(**clip(CLIPVisionConfig), image_size=8, patch_size=4)),
        "CLIPVisionModel: .* an encoder of text, images or sound",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused(name: str) -> None:
    make, message = OTHERS[name]
    model = make()
    for ask in (lambda: tokenprune.apply(model, POLICY), lambda: tokenprune.plan(model)):
        with pytest.raises(UnsupportedModelError, match=f"^{message}"):
            ask()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_pipeline_with_a_unet() -> None:
    pipe = SimpleNamespace(unet=OTHERS["unet"][0](), vae=None)
    with pytest.raises(UnknownModelError, match=r"got SimpleNamespace, which has a U-Net: its blocks work at several"):
        tokenprune.apply(pipe, POLICY)


def test_a_unets_controlnet_is_watched_and_refused_at_its_first_call() -> None:
    """It has no blocks that go up; discovery finds no tokens in it."""
    model = ControlNetModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        norm_num_groups=4,
        cross_attention_dim=8,
        conditioning_embedding_out_channels=(4, 4),
    )
    inputs = (torch.randn(1, 4, 8, 8), 5, torch.randn(1, 3, 8), torch.randn(1, 3, 16, 16))
    tokenprune.apply(model, POLICY)
    with pytest.raises(UnknownModelError, match="could not be discovered"), torch.no_grad():
        model(*inputs)
    assert tokenprune.handle_of(model) is None


# Wrapped models --------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Looking(nn.Module):
    """Hands calls on to a wrapper, and shows what the wrapped model has."""

    def __init__(self, wrapper: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.wrapper = wrapper
        if hasattr(model, "context_embedder"):
            self.context_embedder = model.context_embedder

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapper(*args, **kwargs)


def whole_fsdp(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def fsdp_of_blocks(model: nn.Module) -> nn.Module:
    policy = ModuleWrapPolicy({type(model.transformer_blocks[0])})
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True, auto_wrap_policy=policy)


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for block in model.transformer_blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "ddp of a compiled one": lambda model: DistributedDataParallel(torch.compile(model, backend="eager")),
    "data parallel": DataParallel,
    "fsdp": whole_fsdp,
    "fully_shard": sharded,
}


SHARDS_ON_ACCELERATORS = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason=f"torch {torch.__version__} runs what fully_shard made on accelerators only",
)


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("given", ["wrapper", "pipeline"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SHARDS_ON_ACCELERATORS if name == "fully_shard" else ()) for name in WRAPPERS]
)
def test_wrapped_models(name: str, given: str, sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, POLICY):
        expected = generate(sd3)
    plain = generate(sd3)
    wrapper = WRAPPERS[name](sd3)
    target = wrapper if given == "wrapper" else SimpleNamespace(transformer=wrapper)
    with tokenprune.apply(target, POLICY) as handle:
        assert torch.equal(generate(Looking(wrapper, sd3)), expected)
        report = handle.report()
        assert [step.full for step in report.steps] == [True] * 3 + [False] * 3
        assert report.mac_ratio < 1
        assert tokenprune.handle_of(target) is handle
    assert torch.equal(generate(Looking(wrapper, sd3)), plain)


@pytest.mark.usefixtures("process")
def test_wrappers_in_wrappers(sd3: nn.Module) -> None:
    for wrapper in (torch.compile(DistributedDataParallel(sd3)), DataParallel(torch.compile(whole_fsdp(sd3)))):
        assert unwrapped(wrapper) is sd3
    assert unwrapped(sd3) is sd3


@pytest.mark.usefixtures("process")
def test_parts_wrapped_for_themselves(sd3: nn.Module) -> None:
    message = r"transformer_blocks\.0: FullyShardedDataParallel within the model .* fully_shard, which wraps nothing"
    with pytest.raises(UnsupportedModelError, match=message):
        tokenprune.apply(fsdp_of_blocks(sd3), POLICY)


def test_replicas(sd3: nn.Module) -> None:
    wrapper = DataParallel(sd3)
    wrapper.device_ids = [0, 1]  # as on a machine with two accelerators
    with pytest.raises(UnsupportedModelError, match=r"DataParallel over 2 devices: .* Use DistributedDataParallel"):
        tokenprune.apply(SimpleNamespace(transformer=wrapper), POLICY)


# Pipelines -------------------------------------------------------------------------------------------------------


def parts_of_pipelines() -> dict[str, set[str]]:
    """Names under which the pipelines of diffusers hold diffusion transformers, with the pipelines of each."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in dir(diffusers):
        made = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
        if made is None or "DummyObject" in type(made).__name__:
            continue
        for argument in inspect.signature(made.__init__).parameters.values():
            if re.search(r"Transformer[23]DModel", str(argument.annotation)):
                found[argument.name].add(name)
    return found


@needs("Gemma4ForConditionalGeneration")
def test_every_transformer_of_diffusers_pipelines_is_found() -> None:
    found = parts_of_pipelines()
    assert len(found["transformer"]) > 50
    assert {"WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline"} <= found["transformer_2"]
    assert set(found) <= set(PARTS)


@pytest.mark.parametrize("names", [("transformer",), PARTS[:2], PARTS, ("transformer_2",)], ids=" and ".join)
def test_transformers_of_a_pipeline(names: tuple[str, ...]) -> None:
    held = {name: nn.Linear(2, 2) for name in names}
    target = target_of(SimpleNamespace(**{**dict.fromkeys(PARTS), **held, "vae": nn.Linear(1, 1)}))
    assert target.models == held
    assert target.is_pipeline
    assert transformer_of(SimpleNamespace(**held)) is held[names[0]]


def test_one_transformer_under_two_names() -> None:
    model = nn.Linear(2, 2)
    assert target_of(SimpleNamespace(transformer=model, transformer_2=model)).models == {"transformer": model}
