"""What is constant over a generation, and which channels of the exit are the prediction."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tokenprune.discovery.parts import Pair, changes, pairs_of
from tokenprune.discovery.watch import Event, Inputs, Watched, noised, watch
from tokenprune.engine.oracle import tensors_of
from tokenprune.modulemap import ModuleMap


def find_constants(
    model: nn.Module, inputs: Inputs, found: ModuleMap, plain: list[Event], later: list[Pair]
) -> tuple[str | None, tuple[str, ...]]:
    """The linear layers in blocks that see the text alone, and the name of the text argument.

    Their output stays while latents and timestep change, and changes with the text; attention works meanwhile.

    Args:
        model: the model.
        inputs: arguments of a call, by name.
        found: its map so far.
        plain: what happened in that call.
        later: it and a call with other latents and another timestep.
    """
    inside = tuple(f"{site.path}." for site in found.block_sites)
    layers = {
        path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path.startswith(inside)
    }
    still = _still(later, layers)
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
        pairs = pairs_of(plain, watch(model, {**inputs, name: noised(inputs[name])}).events, f"another {name!r}")
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
        digest, changed = changes(pair).get((), (None, ()))
        still = digest is not None and len(digest.shape) == 3 and not any(changed)
        (same if still else other).add(pair[0].path)
    return same - other


def find_noise_channels(inputs: Inputs, found: ModuleMap, plain: Watched) -> tuple[int, int] | None:
    """How many channels of each pixel the exit gives, and how many are the prediction, where it gives twice as many.

    None where it gives as many as the latents have, or where the pixels do not lie in the exit's output with their
    channels last.

    Args:
        inputs: arguments of a call, by name.
        found: the model's map so far.
        plain: that call; what its exit gave was kept.
    """
    latents, output = inputs[found.latents], tensors_of(plain.output)[0]
    channels = latents.shape[1]
    if latents.ndim != 4 or output.ndim != 4 or output.shape[1] != 2 * channels or found.exit_site.layout != "image":
        return None
    height, width = found.grid(inputs)[-2:]
    if output.shape[2] % height or output.shape[3] % width:
        return None
    tokens = plain.kept.movedim((found.exit_site.batch, found.exit_site.dim), (0, 1))
    patches = rearrange(output, "b c (h p) (w q) -> b (h w) (p q c)", h=height, w=width)
    return (channels, 2 * channels) if patches.shape == tokens.shape and torch.equal(patches, tokens) else None
