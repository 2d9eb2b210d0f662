"""FLUX.1, FLUX.2, FLUX.3 and their kin: Chroma, Bria, LongCat-Image, Ovis-Image.

They get the image as tokens and each token's position, so tokens are chosen before the model sees any. Tokens of
reference images (Kontext, FLUX.2) follow those of the image and are computed at full steps only.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import torch
from diffusers import Flux2Transformer2DModel, Flux3Transformer2DModel
from torch import Tensor, nn

from tokenprune import Arguments, AttentionSite, BlockSite, ModuleMap, TokenArgument, TokenGrid, num_tokens
from tokenprune_adapters.common import TEXT, after, grid_of_ids, paths

CONTROLS = ("controlnet_block_samples", "controlnet_single_block_samples")
IDS = (TokenArgument("img_ids", dim=0, batch=None), TokenArgument("img_ids", dim=1))
"""Positions [N, 3] or [B, N, 4]; in both cases the models use one image's for all."""
TEXTS = (TEXT, TokenArgument("text_encoder_layers", "text"), TokenArgument("txt_ids", "text", dim=-2))
"""Text features [B, T, C], a list of them, and positions [T, 3] or [B, T, 4]."""


def module_map(model: nn.Module) -> ModuleMap:
    """Joint attention over [text, image] in blocks of two streams and then in blocks of one."""
    blocks = paths(model, "transformer_blocks", "single_transformer_blocks")
    grid = grid_of_ids("img_ids")
    accepted = inspect.signature(model.forward).parameters
    return ModuleMap(
        blocks=tuple(BlockSite(path) for path in blocks),
        attentions=tuple(AttentionSite(f"{path}.attn", "text-image") for path in blocks),
        exit="proj_out",
        grid=grid,
        token_inputs=(
            "hidden_states",
            *IDS,
            *(name for name in CONTROLS if name in accepted),
            *(text for text in TEXTS if text.name in accepted),
        ),
        references=after("hidden_states", grid),
        shared=True,
    )


def flux2(model: Flux2Transformer2DModel) -> ModuleMap:
    """As FLUX.1. FLUX.2 klein-KV is given reference images before the image in its first call alone (mode "extract").

    Later calls (mode "cached") take their keys and values out of a cache of the model's, between the text's and the
    image's.
    """
    found = module_map(model)

    def given(arguments: Arguments) -> int:
        """Reference tokens before the image in this call."""
        return arguments["num_ref_tokens"] if arguments.get("kv_cache_mode") == "extract" else 0

    def image(arguments: Arguments) -> Tensor:
        latents: Tensor = arguments["hidden_states"][:, given(arguments) :]
        return latents

    def grid(arguments: Arguments) -> TokenGrid:
        return found.grid({**arguments, "hidden_states": image(arguments)})

    def references(arguments: Arguments) -> tuple[int, int]:
        return 0, image(arguments).shape[1] - num_tokens(grid(arguments))

    def before(arguments: Arguments) -> Tensor | None:
        cache, (batch, text) = arguments.get("kv_cache"), arguments["encoder_hidden_states"].shape[:2]
        cached = given(arguments) if cache is None else cache.num_ref_tokens
        return torch.full((batch,), text + cached) if arguments.get("kv_cache_mode") is not None else None

    return replace(found, grid=grid, references=references, image_latents=image, text_lengths=before)


def flux3(model: Flux3Transformer2DModel) -> ModuleMap:
    """Self-attention over the image, then joint attention over [text, image, reference images].

    Reference images come in an argument of their own, and are computed at every step.
    """
    own, joint = paths(model, "mode_blocks.image"), paths(model, "single_transformer_blocks")

    def before(arguments: Arguments) -> Tensor | None:
        if arguments.get("image_cond_hidden_states") is None:
            return None
        batch, text = arguments["encoder_hidden_states"].shape[:2]
        return torch.full((batch,), text)

    return ModuleMap(
        blocks=tuple(BlockSite(path) for path in (*own, *joint)),
        attentions=(
            *(AttentionSite(f"{path}.attn") for path in own),
            *(AttentionSite(f"{path}.attn", "text-image") for path in joint),
        ),
        exit="proj_out",
        grid=grid_of_ids("img_ids"),
        token_inputs=("hidden_states", *IDS),
        text_lengths=before,
        shared=True,
    )
