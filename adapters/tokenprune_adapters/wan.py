"""Wan 2.1 and 2.2, VACE, and SkyReels-V2, which is built on it."""

from __future__ import annotations

from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel, WanVACETransformer3DModel

from tokenprune import AttentionSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, sites, text_keys


def wan(model: WanTransformer3DModel) -> ModuleMap:
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
