"""Models in the style of published code: each is served as an independent oracle says, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import DiT, MMDiT, SiT, labelled, noise, prompted, randomised
from oracle import Places, Scripted, oracle_outputs
from published import (
    CompressedAttention,
    MaskedWindows,
    PackedPixArt,
    ReferenceMMDiT,
    SpaceTimeDiT,
    UViT,
    UViTConv,
    WindowedAttention,
    classed,
    film,
    packed,
    pooled,
)
from torch import Tensor, nn

import tokenprune
from tokenprune import UnknownModelError
from tokenprune.discovery import discover
from tokenprune.discovery.code import source_of
from tokenprune.engine.oracle import tensors_of
from tokenprune.testing import check_adapter

Call = Callable[..., dict[str, Any]]
SERVED: dict[str, tuple[Callable[[], nn.Module], Call, Places]] = {
    "DiT": (DiT, labelled, Places("final_layer")),
    "SiT": (SiT, labelled, Places("final_layer")),
    "U-ViT": (UViT, classed, Places("decoder_pred", keys=26, first=2, first_out=2)),
    "U-ViT with a convolution": (UViTConv, classed, Places("decoder_pred", keys=26, first=2, first_out=2)),
    "MMDiT": (MMDiT, prompted, Places("head", keys=29, first=5, alike=True)),
    "reference MMDiT": (ReferenceMMDiT, pooled, Places("final_layer", keys=29, first=5)),
    "DiT with masked windows": (lambda: DiT(MaskedWindows), labelled, Places("final_layer")),
    "packed PixArt": (PackedPixArt, packed, Places("final_layer")),
}
TIMES = (0.9, 0.7, 0.5, 0.35, 0.2, 0.05)
COUNTS = (24, 24, 9, 9, 9, 9)


def generation(call: Call) -> list[dict[str, Any]]:
    """The calls of a generation: latents that move, timesteps that fall."""
    calls = []
    for step, time in enumerate(TIMES):
        given = call(time if call is prompted else 1000 * time)
        name = next(name for name in ("image", "x") if name in given)
        calls.append({**given, name: given[name] + 0.1 * step * noise(*given[name].shape, seed=9)})
    return calls


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest) -> tuple[nn.Module, Call, Places]:
    make, call, places = SERVED[request.param]
    return randomised(make), call, places


def test_what_is_served_is_what_an_oracle_gives(served: tuple[nn.Module, Call, Places]) -> None:
    model, call, places = served
    calls = generation(call)
    expected = oracle_outputs(model, places, calls, COUNTS)
    with tokenprune.apply(model, Scripted(0.4, 2)) as handle, torch.no_grad():
        outputs = [model(**given) for given in calls]
        report = handle.report()
    assert [step.tokens for step in report.steps] == list(COUNTS)
    for one, other in zip(outputs, expected, strict=True):
        (one,), (other,) = tensors_of(one), tensors_of(other)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert 0.4 < report.mac_ratio < 0.9


def test_the_oracle_can_tell(served: tuple[nn.Module, Call, Places]) -> None:
    """Stale keys and values, and held predictions, make a difference of their own."""
    model, call, places = served
    calls = generation(call)
    dense = oracle_outputs(model, places, calls, [places.tokens] * len(COUNTS))
    pruned = oracle_outputs(model, places, calls, COUNTS)
    with torch.no_grad():
        for given, one in zip(calls, dense, strict=True):
            assert torch.equal(tensors_of(one)[0], tensors_of(model(**given))[0])
    for one, other in zip(dense[2:], pruned[2:], strict=True):
        assert (tensors_of(one)[0] - tensors_of(other)[0]).abs().max() > 1e-2


def test_the_code_of_the_map_is_an_adapter_that_passes_the_kit(served: tuple[nn.Module, Call, Places]) -> None:
    model, call, _ = served
    scope: dict[str, Any] = {}
    exec(source_of(discover(model, (), call()).map, type(model).__name__), scope)
    check_adapter(lambda: model, call(), adapter=scope["module_map"])


def test_packed_prompts_are_read_on_the_host() -> None:
    assert discover(randomised(PackedPixArt), (), packed()).map.reads_values
    assert not discover(randomised(DiT), (), labelled()).map.reads_values


@pytest.mark.parametrize(
    ("make", "call", "missing"),
    [
        (SpaceTimeDiT, film, r"attention sees 3, 24 image keys in different modules \(stages .*, windows or frames"),
        (lambda: DiT(WindowedAttention), labelled, r"blocks\.0\.attn attends to a batch of 12 for 2 images \(windows"),
        (lambda: DiT(CompressedAttention), labelled, r"blocks\.0\.attn attends with 24 queries to 6 keys that change"),
        (lambda: PackedPixArt(CompressedAttention), packed, r"a key for each image token: blocks\.0\.attn"),
    ],
    ids=["space and time", "windows", "compressed keys", "compressed keys of PixArt"],
)
def test_what_cannot_be_served_is_refused(make: Callable[[], nn.Module], call: Call, missing: str) -> None:
    model = randomised(make)
    calls: list[Tensor] = []
    model.register_forward_pre_hook(lambda *_: calls.append(torch.empty(0)))
    with pytest.raises(UnknownModelError, match=missing):
        discover(model, (), call())
    assert len(calls) <= 2
