"""What is constant over a generation, and which channels of the exit are the prediction."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from tokenprune.discovery.parts import Pair, changes, pairs_of
from tokenprune.discovery.watch import Inputs, copied, noised, watch
from tokenprune.engine.oracle import tensors_of
from tokenprune.modulemap import ModuleMap


def find_constants(
    model: nn.Module, inputs: Inputs, found: ModuleMap, moved: list[Pair]
) -> tuple[str | None, tuple[str, ...]]:
    """The linear layers in blocks that see the text alone, and the name of the text argument.

    Their output stays while latents and timestep change, and changes with the text; attention works meanwhile.

    Args:
        model: the model.
        inputs: arguments of a call, by name.
        found: its map so far.
        moved: two calls with other latents, to see whether it is worth looking.
    """
    inside = tuple(f"{site.path}." for site in found.block_sites)
    layers = {
        path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path.startswith(inside)
    }
    if not layers & _still(moved, layers):
        return None, ()
    base = watch(model, inputs).events
    later = {**inputs, found.latents: noised(inputs[found.latents]), found.time: _other_time(inputs[found.time])}
    still = _still(pairs_of(base, watch(model, later).events), layers)
    texts = [
        name
        for name, value in inputs.items()
        if name != found.latents
        and isinstance(value, Tensor)
        and value.ndim == 3
        and value.is_floating_point()
        and len(value) == len(inputs[found.latents])
    ]
    for name in texts if still else []:
        pairs = pairs_of(base, watch(model, {**inputs, name: noised(inputs[name])}).events)
        own = still - _still(pairs, layers)
        if own:
            return name, tuple(path for path, _ in model.named_modules() if path in own)
    return None, ()


def _still(pairs: list[Pair], layers: set[str]) -> set[str]:
    """The layers whose output [B, T, C] is the same in both calls."""
    returned = [pair for pair in pairs if pair[0].kind == "return" and pair[0].path in layers]
    same: set[str] = set()
    other: set[str] = set()
    for pair in returned:
        (digest, changed), *_ = changes(pair).values()
        (same if len(digest.shape) == 3 and not any(changed) else other).add(pair[0].path)
    return same - other


def _other_time(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value * 0.5 + 0.1
    if isinstance(value, Tensor):
        return torch.where(value > 0, value // 2, value + 1)
    return value * 0.5 + 0.1 if isinstance(value, float) else value // 2 if value > 0 else value + 1


def find_noise_channels(model: nn.Module, inputs: Inputs, found: ModuleMap) -> tuple[int, int] | None:
    """How many channels of each pixel the exit gives, and how many are the prediction, where it gives twice as many.

    None where it gives as many as the latents have, or where the pixels do not lie in the exit's output with their
    channels last.
    """
    latents, outputs = inputs[found.latents], []
    exit_module = model.get_submodule(found.exit_site.path)
    removable = exit_module.register_forward_hook(lambda *given: outputs.append(given[2].clone()))
    try:
        output = tensors_of(model(**copied(inputs)))[0]
    finally:
        removable.remove()
    channels = latents.shape[1]
    if latents.ndim != 4 or output.ndim != 4 or output.shape[1] != 2 * channels or found.exit_site.layout != "image":
        return None
    height, width = found.grid(inputs)[-2:]
    tokens = outputs[0].movedim((found.exit_site.batch, found.exit_site.dim), (0, 1))
    patches = rearrange(output, "b c (h p) (w q) -> b (h w) (p q c)", h=height, w=width)
    return (channels, 2 * channels) if patches.shape == tokens.shape and torch.equal(patches, tokens) else None
