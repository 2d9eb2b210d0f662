"""Maps discovered for models that have adapters are those of the adapters, and prune alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import ALL
from torch import nn

import tokenprune
from tokenprune import AttentionSite, BlockSite, ModuleMap, RandomPolicy
from tokenprune.discovery import discover
from tokenprune.discovery.code import source_of
from tokenprune.testing import check_adapter
from tokenprune_adapters import flux, pixart, sd3, wan

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TINY = {tiny.name: tiny for tiny in ALL}
ADAPTERS: dict[str, Any] = {
    "sd3": sd3.module_map,
    "sd3.5": sd3.module_map,
    "pixart": pixart.module_map,
    "flux": flux.module_map,
    "flux-kontext": flux.module_map,
    "wan": wan.wan,
}


def essence(found: ModuleMap, inputs: dict[str, Any]) -> dict[str, Any]:
    """What two maps of one model must share to prune alike, without an IP-Adapter's further attention."""
    attentions = [replace(site, further=None) for site in found.attentions]
    return {
        "blocks": [site.path for site in found.block_sites],
        "attentions": sorted(attentions, key=lambda site: site.path),
        "exit": found.exit_site,
        "grid": found.grid(inputs),
        "references": found.references(inputs) if found.references else (0, 0),
        "arguments": (found.latents, found.time),
        "constants": sorted(found.constants),
        "text": found.text if found.constants else None,
        "shared": found.shared,
        "noise": found.noise_channels if found.noise_channels != found.output_channels else None,
    }


def outputs(model: nn.Module, inputs: dict[str, Any], adapter: Any) -> list[torch.Tensor]:
    """A generation of four steps, the last two of them pruned."""
    found = []
    with tokenprune.apply(model, RandomPolicy(0.4, 2), adapter=adapter), torch.no_grad():
        for step in range(4):
            latents = inputs["hidden_states"] * (1 - 0.1 * step)
            times = inputs["timestep"] * (1 - 0.2 * step)
            found.append(model(**{**inputs, "hidden_states": latents, "timestep": times})[0])
    return found


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_discovered_map_is_the_adapters(name: str) -> None:
    tiny, adapter = TINY[name], ADAPTERS[name]
    model, inputs = tiny.make(), tiny.inputs()
    found = discover(model, (), inputs).map
    assert essence(found, inputs) == essence(adapter(model), inputs)
    pairs = zip(outputs(model, inputs, lambda _: found), outputs(model, inputs, adapter), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_code_of_the_map_passes_the_kit(name: str) -> None:
    tiny = TINY[name]
    scope: dict[str, Any] = {}
    exec(source_of(discover(tiny.make(), (), tiny.inputs()).map, name), scope)
    assert check_adapter(tiny.make, tiny.inputs(), adapter=scope["module_map"], image_of=tiny.image_of).passed


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": ("transformer_blocks.0",)},
        {"attentions": (AttentionSite("transformer_blocks.0.attn1", "image-text"),)},
        {"exit": "transformer_blocks.1"},
        {"grid": lambda _: (6, 4)},
        {"constants": ()},
        {"shared": True},
        {"noise_channels": None},
        {"time": "hidden_states"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_can_fail(change: dict[str, Any]) -> None:
    tiny = TINY["pixart"]
    found = pixart.module_map(tiny.make())
    assert essence(replace(found, **change), tiny.inputs()) != essence(found, tiny.inputs())


def test_what_is_gathered() -> None:
    tiny = TINY["wan"]
    model = tiny.make()
    found = discover(model, (), tiny.inputs()).map
    assert found.block_sites == wan.wan(model).block_sites
    assert all(isinstance(block, BlockSite) for block in found.blocks)
    tiny = TINY["sd3.5"]
    found = discover(tiny.make(), (), tiny.inputs()).map
    assert found.token_inputs == ("block_controlnet_hidden_states",)
    assert found.blocks == tuple(f"transformer_blocks.{i}" for i in range(3))
