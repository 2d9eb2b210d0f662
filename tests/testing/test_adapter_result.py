"""What the kit for adapters tells of each property, and what it found out of late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from models import Centring, DiT, MMDiT, labelled, prompted, randomised
from published import PackedPixArt, packed
from tiny import ALL
from torch import Tensor, nn

from tokenprune import AttentionSite, ModuleMap, latent_grid
from tokenprune.discovery import discover
from tokenprune.testing import AdapterCheckError, AdapterProperty, CheckResult, check_adapter

TINY = {tiny.name: tiny for tiny in ALL}
PROPERTIES = get_args(AdapterProperty)


class TwoProjections(DiT):
    """Its last layer is followed by one more."""

    def __init__(self) -> None:
        super().__init__()
        self.final_layer.linear = nn.Sequential(self.final_layer.linear, nn.GELU(), nn.Linear(32, 32))


def dit_map(model: nn.Module) -> ModuleMap:
    return ModuleMap(
        blocks=tuple(f"blocks.{i}" for i in range(3)),
        attentions=tuple(AttentionSite(f"blocks.{i}.attn") for i in range(3)),
        exit="final_layer",
        grid=latent_grid("x", 2),
        hidden="x",
        latents="x",
        time="t",
        text=None,
    )


def outcomes(result: CheckResult) -> dict[str, str]:
    return {finding.name: finding.outcome for finding in result.findings}


def failed(make: Callable[[], nn.Module], inputs: Any, adapter: Any) -> AdapterCheckError:
    with pytest.raises(AdapterCheckError) as caught:
        check_adapter(make, inputs, adapter=adapter)
    return caught.value


def test_every_property_is_told() -> None:
    result = check_adapter(lambda: randomised(DiT), labelled(), adapter=dit_map)
    assert tuple(outcomes(result)) == PROPERTIES
    assert result.passed
    assert [name for name, outcome in outcomes(result).items() if outcome == "not checked"] == [
        "held text",
        "constants",
    ]
    printed = str(result)
    assert printed.startswith("adapter of DiT\n  map")
    for words in ("3 blocks, 3 attention modules, 24 tokens, 2 images", "at t = 10, with other latents", "time_rises"):
        assert words in printed


def test_what_cannot_be_checked_is_said() -> None:
    """One image, values that are read: each has its reason."""
    one = {name: value[:1] for name, value in labelled().items()}
    (batch,) = (f for f in check_adapter(lambda: randomised(DiT), one, adapter=dit_map).findings if f.name == "batch")
    assert (batch.outcome, batch.detail) == ("not checked", "the arguments are for one image")
    found = discover(randomised(PackedPixArt), (), packed()).map
    result = check_adapter(lambda: randomised(PackedPixArt), packed(), adapter=lambda _: found, image_of=of_packed)
    assert outcomes(result)["operations"] == "not checked"


def of_packed(given: Any, image: int) -> Any:
    return {name: value[image : image + 1] for name, value in given.items()}


def test_images_that_share_a_selection_are_checked_alone_too() -> None:
    found = discover(randomised(MMDiT), (), prompted()).map
    assert found.shared
    assert outcomes(check_adapter(lambda: randomised(MMDiT), prompted(), adapter=lambda _: found))["batch"] == "passed"

    class Mixing(MMDiT):
        def forward(self, sigma: Tensor, image: Tensor, context: Tensor) -> dict[str, Tensor]:
            return super().forward(sigma, image, context + context.mean(0, keepdim=True))

    assert failed(lambda: randomised(Mixing), prompted(), lambda _: found).broken == "batch"


@pytest.mark.parametrize("path", ["final_layer.linear.0", "final_layer.norm", "blocks.2"])
def test_an_exit_before_the_last_projection(path: str) -> None:
    error = failed(lambda: randomised(TwoProjections), labelled(), lambda m: replace(dit_map(m), exit=path))
    assert error.broken == "exit"
    assert f"final_layer.linear.2 still works on the tokens that {path} gives" in str(error)
    check_adapter(lambda: randomised(TwoProjections), labelled(), adapter=dit_map)


def test_the_result_of_a_failure_comes_with_the_error() -> None:
    error = failed(lambda: randomised(TwoProjections), labelled(), lambda m: replace(dit_map(m), exit="blocks.2"))
    assert error.result is not None
    assert not error.result.passed
    found = outcomes(error.result)
    assert found == {
        "map": "passed",
        "full": "passed",
        "pruned": "passed",
        "held text": "not checked",
        "exit": "failed",
    }
    assert str(error) in " ".join(str(error.result).split())


def test_what_happens_at_low_noise_alone() -> None:
    error = failed(lambda: randomised(Centring), labelled(), dit_map)
    assert error.broken == "noise level"
    assert "differs by" in str(error)


def timed_pixart() -> nn.Module:
    """PixArt whose keys of the text depend on the timestep, too."""
    model = TINY["pixart"].make()
    times: list[float] = []

    def note(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        times[:] = [float(kwargs["timestep"].max())]

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.transformer_blocks[0].attn2.to_k.register_forward_pre_hook(lambda _, args: (args[0] + times[0] / 1000,))
    return model


def test_layers_that_see_more_than_the_text() -> None:
    inputs = TINY["pixart"].inputs()
    assert outcomes(check_adapter(TINY["pixart"].make, inputs))["constants"] == "passed"
    error = failed(timed_pixart, inputs, None)
    assert error.broken == "constants"
    assert "transformer_blocks.0.attn2.to_k: expected the same output" in str(error)


def test_a_model_that_reads_values() -> None:
    found = replace(discover(randomised(PackedPixArt), (), packed()).map, reads_values=False)
    error = failed(lambda: randomised(PackedPixArt), packed(), lambda _: found)
    assert error.broken == "operations"
    assert "the map needs reads_values=True" in str(error)


def test_a_model_that_knows_its_timesteps_alone() -> None:
    class Knowing(DiT):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            if float(t.max()) != 500:
                raise KeyError("no such timestep")
            return super().forward(x, t, y)

    def reading(model: nn.Module) -> ModuleMap:
        return replace(dit_map(model), reads_values=True)

    result = check_adapter(lambda: randomised(Knowing), labelled(), adapter=reading)
    (level,) = (finding for finding in result.findings if finding.name == "noise level")
    assert level.outcome == "not checked"
    assert "at t = 10 the model raises KeyError" in level.detail
