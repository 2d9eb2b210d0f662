"""Maps of models that nobody wrote an adapter for."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import (
    ConvMlp,
    DiT,
    MMDiT,
    Recurrent,
    SiT,
    SoftmaxAttention,
    UNet,
    labelled,
    noise,
    prompted,
    randomised,
    unlabelled,
)
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    AttentionSite,
    BlockSite,
    CacheConflictError,
    ModuleMap,
    NoisePolicy,
    TokenArgument,
    UnknownModelError,
    latent_grid,
)
from tokenprune.discovery import discover
from tokenprune.testing import check_adapter

POLICY = NoisePolicy(0.3, 2)


def dit_map(model: nn.Module) -> ModuleMap:
    """What a person would write for the DiT."""
    return ModuleMap(
        blocks=tuple(f"blocks.{i}" for i in range(3)),
        attentions=tuple(AttentionSite(f"blocks.{i}.attn") for i in range(3)),
        exit="final_layer",
        grid=latent_grid("x", 2),
        hidden="x",
        latents="x",
        time="t",
        text=None,
        noise_channels=4,
        output_channels=8,
    )


def state(model: nn.Module) -> list[Any]:
    """Everything that hooks and attributes could change."""
    return [
        (name, sorted(module.__dict__), {k: len(v) for k, v in module.__dict__.items() if k.endswith("hooks")})
        for name, module in model.named_modules()
    ]


def generation(model: nn.Module, make: Callable[..., dict[str, Any]], times: list[float]) -> list[Tensor]:
    """Outputs of calls with latents that move a little each time."""
    outputs = []
    for step, time in enumerate(times):
        given = make(time)
        name = "image" if "image" in given else "x"
        given[name] = given[name] + 0.05 * step * noise(*given[name].shape, seed=9)
        with torch.no_grad():
            output = model(**given)
        outputs.append(output["sample"] if isinstance(output, dict) else output)
    return outputs


def test_the_map_of_a_dit_is_what_one_would_write() -> None:
    model = randomised(DiT)
    found = discover(model, (), labelled()).map
    expected = dit_map(model)
    for field in ModuleMap.__dataclass_fields__:
        if field != "grid":
            assert getattr(found, field) == getattr(expected, field), field
    assert found.grid(labelled()) == (4, 6)
    assert found.grid({"x": torch.empty(1, 4, 16, 10)}) == (8, 5)


def test_a_discovered_dit_prunes_as_with_its_adapter() -> None:
    times = [900.0, 700.0, 500.0, 300.0]
    with tokenprune.apply(randomised(DiT), POLICY, adapter=dit_map) as handle:
        expected = generation(handle.transformers["transformer"], labelled, times)
        counts = [step.tokens for step in handle.report().steps]
    model = randomised(DiT)
    with tokenprune.apply(model, POLICY) as handle:
        outputs = generation(model, labelled, times)
        report = handle.report()
    assert [step.tokens for step in report.steps] == counts == [24, 24, 7, 7]
    assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
    assert report.mac_ratio < 0.8
    assert "taken to fall" in str(report)


@pytest.mark.parametrize(("make", "call"), [(DiT, labelled), (SiT, labelled), (MMDiT, prompted)])
def test_discovered_maps_pass_the_kit(make: type[nn.Module], call: Callable[..., dict[str, Any]]) -> None:
    found = discover(randomised(make), (), call()).map
    check_adapter(lambda: randomised(make), call(), adapter=lambda _: found)


class Squeezing(DiT):
    """Its blocks are given tokens whose dimension is squeezed away where there is one alone, as Allegro's."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].attn.register_forward_pre_hook(lambda _, args: (args[0].squeeze(1),))


def test_the_least_tokens_of_a_model_are_tried() -> None:
    found = discover(randomised(Squeezing), (), labelled()).map
    assert found.least_tokens == 2
    assert discover(randomised(DiT), (), labelled()).map.least_tokens == 1
    model = randomised(Squeezing)
    with tokenprune.apply(model, NoisePolicy(0.001, 2)) as handle:
        generation(model, labelled, [900.0, 700.0, 500.0])
        assert [step.tokens for step in handle.report().steps] == [24, 24, 2]


def test_a_joint_model_with_attention_in_its_blocks() -> None:
    found = discover(randomised(MMDiT), (), prompted()).map
    tokens = (TokenArgument("img"), TokenArgument("angles", dim=0, batch=None))
    assert found.block_sites == tuple(BlockSite(path, tokens) for path in ("block_a", "block_b"))
    assert found.attentions == tuple(AttentionSite(path, "text-image") for path in ("block_a", "block_b"))
    assert (found.exit, found.latents, found.time, found.shared) == ("head", "image", "sigma", True)
    assert found.grid(prompted()) == (4, 6)
    assert found.grid({"image": torch.empty(1, 20, 6, 4)}) == (10, 3)


def test_positional_arguments_and_generators() -> None:
    model = randomised(SiT)
    given = labelled()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with tokenprune.apply(model, POLICY), torch.no_grad():
        output = model(given["x"], given["t"], given["y"])
        assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        assert torch.equal(output, model(**given))
    assert torch.equal(given["x"], labelled()["x"])


def test_times_that_rise_are_turned_round() -> None:
    model = randomised(SiT)
    with tokenprune.apply(model, POLICY) as handle:
        generation(model, labelled, [0.0, 0.2, 0.4, 0.6, 0.8])
        report = handle.report()
    assert [step.tokens for step in report.steps] == [24, 24, 7, 7]  # the second call begins the generation again
    assert report.generations == 1
    assert "'t' rises as the noise falls" in str(report)
    assert handle.map is not None
    assert handle.map.time_rises


def test_a_handle_before_its_first_call() -> None:
    model = randomised(DiT)
    before = state(model)
    handle = tokenprune.apply(model, POLICY)
    assert handle.map is None
    assert "map will be found at its first call" in str(handle.report())
    assert repr(handle) == "Handle(DiT, before its first call)"
    handle.reset()
    with pytest.raises(tokenprune.AlreadyPrunedError):
        tokenprune.apply(model, POLICY)
    with pytest.raises(tokenprune.TraceError):
        handle.trace  # noqa: B018
    handle.remove()
    assert repr(handle) == "Handle(DiT, removed)"
    assert state(model) == before


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_remove_gives_the_model_back(calls: int) -> None:
    model = randomised(DiT)
    times = [900.0, 700.0, 500.0]
    before, plain = state(model), generation(model, labelled, times)
    handle = tokenprune.apply(model, POLICY)
    generation(model, labelled, times[:calls])
    handle.remove()
    handle.remove()
    assert state(model) == before
    assert all(torch.equal(one, other) for one, other in zip(generation(model, labelled, times), plain, strict=True))


@pytest.mark.parametrize("first", [True, False])
def test_a_patched_model_is_not_looked_into(first: bool) -> None:
    """A cache that came before the first call is refused, and the model is discovered when it is off."""

    def cached_forward(self: DiT, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x

    model = randomised(DiT)
    if first:
        model.forward = types.MethodType(cached_forward, model)
        with pytest.raises(CacheConflictError, match=r"forward is replaced by .*cached_forward"):
            tokenprune.apply(model, POLICY)
        del model.forward
    with tokenprune.apply(model, POLICY) as handle:
        model.forward = types.MethodType(cached_forward, model)
        for _ in range(2):
            with pytest.raises(CacheConflictError, match=r"forward is replaced by .*cached_forward"):
                generation(model, labelled, [900.0])
        del model.forward
        generation(model, labelled, [900.0, 700.0, 500.0])
        assert [step.tokens for step in handle.report().steps] == [24, 24, 7]


def test_an_adapter_wins_and_discovery_can_be_forbidden() -> None:
    model = randomised(DiT)
    with tokenprune.apply(model, POLICY, adapter=dit_map) as handle:
        assert handle.map is not None
        assert handle.map.exit == "final_layer"
    with pytest.raises(UnknownModelError, match="DiT: no adapter describes this model"):
        tokenprune.apply(model, POLICY, discover=False)
    assert tokenprune.plan(model) is not None


def zero_gates() -> nn.Module:
    model = randomised(DiT)
    for block in model.blocks:
        block.adaLN_modulation[1].weight.data.zero_()
        block.adaLN_modulation[1].bias.data.zero_()
    return model


@pytest.mark.parametrize(
    ("make", "call", "missing"),
    [
        (lambda: randomised(Recurrent), unlabelled, "attention to the image: of 0 calls"),
        (lambda: randomised(UNet), unlabelled, "one set of image tokens: attention sees 24, 96 image keys"),
        (lambda: randomised(lambda: DiT(SoftmaxAttention)), labelled, "attention written with softmax"),
        (
            lambda: randomised(lambda: DiT(mlp=ConvMlp)),
            labelled,
            r"blocks\.0\.mlp\S* lets image tokens change others",
        ),
        (zero_gates, labelled, "keys and values do not change the output"),
    ],
    ids=["recurrent", "several resolutions", "written-out attention", "convolution", "zero gates"],
)
def test_models_that_cannot_be_pruned(
    make: Callable[[], nn.Module], call: Callable[..., dict[str, Any]], missing: str
) -> None:
    model = make()
    before, plain = state(model), generation(model, call, [500.0])
    handle = tokenprune.apply(model, POLICY)
    with pytest.raises(UnknownModelError, match=missing) as caught:
        generation(model, call, [500.0])
    message = str(caught.value)
    assert message.startswith(
        f"{type(model).__name__}: no adapter describes this model, and it could not be discovered"
    )
    assert "Found: latents 'x' [2, 4, 8, 12]; timestep 't'" in message
    assert "adapter=" in message
    assert message in handle.report().notes
    assert state(model) == before
    assert torch.equal(generation(model, call, [500.0])[0], plain[0])


class Renamed(DiT):
    def forward(self, x: Tensor, level: Tensor, weight: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, level, y)


def test_two_arguments_that_could_be_the_timestep() -> None:
    given = labelled()
    arguments = {"x": given["x"], "level": given["t"], "weight": given["t"], "y": given["y"]}
    with pytest.raises(UnknownModelError, match="the timestep: none of the arguments x, level, weight, y"):
        discover(randomised(Renamed), (), arguments)
