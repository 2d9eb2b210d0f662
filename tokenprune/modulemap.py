"""Where things are in a model, as data: what an adapter provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tokenprune.errors import ModuleMapError
from tokenprune.grid import TokenGrid

Layout = Literal["image", "image-text", "text-image"]
"""The order of the keys of an attention module."""

Guidance = Literal["none", "uncond-first", "cond-first"]
"""How classifier-free guidance lies in the batch of one call."""


@dataclass(frozen=True)
class AttentionSite:
    """An attention module whose keys contain the image tokens.

    Args:
        path: name of the module in the model, as in `model.get_submodule`.
        layout: order of image and text keys.
    """

    path: str
    layout: Layout = "image"


@dataclass(frozen=True)
class ModuleMap:
    """The places in a model that pruning needs, and how its arguments read.

    Args:
        blocks: paths of the transformer blocks that take the image tokens, in the order they run. The first is
            the entry: its `hidden` argument [B, N, C] is reduced to [B, n, C].
        attentions: the attention modules inside them that see image keys.
        exit: path of the last projection, whose output [B, n, C] becomes [B, N, C] again.
        grid: token grid of a call, from the model's arguments by name.
        hidden: name of the blocks' image-token argument.
        latents: name of the model's argument that holds the noisy latents.
        time: name of the model's timestep argument.
        time_rises: whether the timestep grows as the noise falls.
        text: name of the model's text argument; while it is the same tensor, `constants` are reused.
        constants: paths of modules whose output depends on the text alone (cross-attention keys and values).
        token_inputs: names of further model arguments that hold tensors [B, N, ...], or lists of them.
        noise_channels: how many of the `output_channels` of each pixel of a token are the prediction; the others
            (a learned variance) are left out of what policies see. None: all.
        output_channels: channels of each pixel in the exit's output, where `noise_channels` is given.
        guidance: order of the two halves when one call holds both guidance branches.
    """

    blocks: tuple[str, ...]
    attentions: tuple[AttentionSite, ...]
    exit: str
    grid: Callable[[Mapping[str, Any]], TokenGrid]
    hidden: str = "hidden_states"
    latents: str = "hidden_states"
    time: str = "timestep"
    time_rises: bool = False
    text: str | None = "encoder_hidden_states"
    constants: tuple[str, ...] = ()
    token_inputs: tuple[str, ...] = ()
    noise_channels: int | None = None
    output_channels: int | None = None
    guidance: Guidance = "uncond-first"

    @property
    def paths(self) -> tuple[str, ...]:
        """Every module path the map names."""
        return (*self.blocks, *(site.path for site in self.attentions), self.exit, *self.constants)

    def check(self, model: nn.Module) -> None:
        """Raise ModuleMapError unless every path leads to a module and no list is empty."""
        known = {name for name, _ in model.named_modules()}
        missing = [path for path in self.paths if path not in known]
        if missing or not self.blocks or not self.attentions:
            what = f"no module named {', '.join(missing)}" if missing else "no blocks or no attention modules listed"
            raise ModuleMapError(
                f"{type(model).__name__}: the module map does not fit: {what}. Compare the adapter with "
                f"model.named_modules(); another version of the model's library may have renamed modules."
            )


def latent_grid(argument: str, patch: int) -> Callable[[Mapping[str, Any]], TokenGrid]:
    """A grid reader for latents [B, C, height, width] cut into patch x patch tokens."""

    def grid(arguments: Mapping[str, Any]) -> TokenGrid:
        height, width = arguments[argument].shape[-2:]
        return (height // patch, width // patch)

    return grid
