"""Wan 2.1 and 2.2, VACE, and what is built on it: ChronoEdit, SkyReels-V2, AnyFlow."""

from __future__ import annotations

from diffusers import (
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

from tokenprune import AttentionSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import frames_first, paths, sites, text_keys


def wan(model: WanTransformer3DModel | ChronoEditTransformer3DModel) -> ModuleMap:
    """Self-attention over the video; the timestep may be one for each token."""
    blocks = paths(model, "blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", "rotary_emb"),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", tuple(model.config.patch_size)),
        constants=text_keys(blocks),
        token_inputs=("timestep",),
    )


def vace(model: WanVACETransformer3DModel) -> ModuleMap:
    """As Wan, with blocks for the control video before, whose results are added behind the blocks."""
    control, blocks = paths(model, "vace_blocks"), paths(model, "blocks")
    return ModuleMap(
        blocks=(
            *sites(control, "hidden_states", "control_hidden_states", "rotary_emb"),
            *sites(blocks, "hidden_states", "rotary_emb"),
        ),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in (*control, *blocks)),
        exit="proj_out",
        grid=latent_grid("hidden_states", tuple(model.config.patch_size)),
        constants=text_keys((*control, *blocks)),
    )


def skyreels(model: SkyReelsV2Transformer3DModel) -> ModuleMap:
    """As Wan; diffusion forcing modulates each token, and all of them behind the last block."""
    blocks = paths(model, "blocks")
    modulation = TokenArgument("temb", dim=2, ndim=4)
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", "rotary_emb", modulation),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit=ExitSite("proj_out", expand=blocks[-1]),
        grid=latent_grid("hidden_states", tuple(model.config.patch_size)),
        constants=text_keys(blocks),
    )


def anyflow(model: AnyFlowTransformer3DModel) -> ModuleMap:
    """As Wan; frames come before channels, and each token is modulated, all of them behind the last block, too."""
    blocks = paths(model, "blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", "temb", TokenArgument("rotary_emb", dim=2)),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit=ExitSite("proj_out", expand=blocks[-1]),
        grid=frames_first(tuple(model.config.patch_size)),
        constants=text_keys(blocks),
    )
