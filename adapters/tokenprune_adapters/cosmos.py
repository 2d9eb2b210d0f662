"""Cosmos 1, 2 and 3."""

from __future__ import annotations

import torch
from diffusers import Cosmos3OmniTransformer, CosmosTransformer3DModel
from torch import Tensor

from tokenprune import (
    Arguments,
    AttentionSite,
    BlockSite,
    ExitSite,
    ModuleMap,
    TokenArgument,
    TokenGrid,
    UnsupportedCallError,
    latent_grid,
)
from tokenprune_adapters.common import frames_or_picture, paths, rotary, sites


def two(model: CosmosTransformer3DModel) -> ModuleMap:
    """Self-attention over the video; the timestep may be one for each frame, the modulation then one for each token."""
    blocks = paths(model, "transformer_blocks")
    modulation = tuple(TokenArgument(name, ndim=3) for name in ("embedded_timestep", "temb"))
    return ModuleMap(
        blocks=(
            *sites(blocks, "hidden_states", rotary(), "extra_pos_emb", "controlnet_residual", *modulation),
            BlockSite("norm_out", modulation),
        ),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", tuple(model.config.patch_size)),
        shared=True,
    )


def omni(model: Cosmos3OmniTransformer) -> ModuleMap:
    """One video a call, without a dimension for images; it attends to [text, video], the text to itself alone.

    Frames that are given come first and are computed at full steps only. Calls with sound or actions are refused.
    """
    blocks = paths(model, "layers")

    def frames(arguments: Arguments) -> tuple[int, int]:
        """How many are given, and how many there are to draw."""
        shapes, noisy = arguments["vision_token_shapes"], arguments["vision_noisy_frame_indexes"]
        others = [name for name in ("sound_tokens", "action_tokens") if arguments.get(name) is not None]
        drawn = noisy[0].tolist() if len(shapes) == 1 and not others else []
        count = shapes[0][0]
        if not drawn or drawn != list(range(count - len(drawn), count)):
            raise UnsupportedCallError(
                f"{type(model).__name__}: expected one video whose last frames are to be drawn, without sound and "
                f"actions, got {len(shapes)} with frames {[list(map(int, each)) for each in noisy]} to draw"
                f"{' and ' + ', '.join(others) if others else ''}, which share one sequence with it. remove() the "
                f"handle for such a call"
            )
        return count - len(drawn), len(drawn)

    def grid(arguments: Arguments) -> TokenGrid:
        _, height, width = arguments["vision_token_shapes"][0]
        return frames_or_picture(frames(arguments)[1], height, width)

    def given(arguments: Arguments) -> tuple[int, int]:
        _, height, width = arguments["vision_token_shapes"][0]
        return frames(arguments)[0] * height * width, 0

    def before(arguments: Arguments) -> Tensor:
        return torch.full((1,), arguments["und_len"])

    tokens = [TokenArgument("rotary_emb", dim=0, batch=None, item=item) for item in (2, 3)]
    return ModuleMap(
        blocks=sites(blocks, TokenArgument("gen_seq", dim=0, batch=None), *tokens),
        attentions=tuple(AttentionSite(f"{path}.self_attn", "text-image") for path in blocks),
        exit=ExitSite("proj_out", dim=0, batch=None, expand="norm_moe_gen", references=False),
        grid=grid,
        latents="vision_tokens",
        time="vision_timesteps",
        text="input_ids",
        references=given,
        text_lengths=before,
        shared=True,
        reads_values=True,
    )
