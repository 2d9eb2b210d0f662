"""MiniMax-H3."""

from __future__ import annotations

from typing import Any

from diffusers import MiniMaxH3Transformer3DModel
from torch import Tensor

from tokenprune import Arguments, AttentionSite, ExitSite, ModuleMap, TokenArgument, TokenGrid
from tokenprune_adapters.common import frames_or_picture, paths, rectangle, sites


def _places(arguments: Arguments) -> Tensor:
    """Positions [N, 3] of the video to draw: the rows at the end with the timestep and modality of the last."""
    rows = arguments["timestep_indices"] * (arguments["token_tags"].max() + 1) + arguments["token_tags"]
    count = int((rows == rows[-1]).flip(0).long().cumprod(0).sum())
    places: Tensor = arguments["position_ids"][-count:]
    return places


def _grid(arguments: Arguments) -> TokenGrid:
    places = _places(arguments)
    frames = 1 + int((places[1:, 0] != places[:-1, 0]).sum())
    height, width = rectangle(places[: len(places) // frames])
    return frames_or_picture(frames, height, width)


def _level(arguments: Arguments) -> Any:
    """The timestep of the last row, which is one of the video."""
    return arguments["timestep"][arguments["timestep_indices"][-1]]


def module_map(model: MiniMaxH3Transformer3DModel) -> ModuleMap:
    """One sequence [text, given frames, sound, video], up to the output; all but the video is computed at every step.

    The model picks the sound out of all rows behind its last block.
    """
    blocks = paths(model, "transformer_blocks")
    rows = (TokenArgument(name, "text-image", 0, None) for name in ("adaln_indices", "rotary_emb"))
    return ModuleMap(
        blocks=sites(blocks, TokenArgument("hidden_states", "text-image"), *rows),
        attentions=tuple(AttentionSite(f"{path}.attn", "text-image") for path in blocks),
        exit=ExitSite("proj_out", "text-image", expand=blocks[-1], expand_layout="text-image"),
        grid=_grid,
        noise_level=_level,
        time_rises=True,
        shared=True,
        reads_values=True,
    )
