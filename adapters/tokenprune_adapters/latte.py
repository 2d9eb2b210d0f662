"""Latte."""

from __future__ import annotations

from diffusers import LatteTransformer3DModel

from tokenprune import Arguments, AttentionSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, sites


def _frames(arguments: Arguments) -> int:
    frames: int = arguments["hidden_states"].shape[2]
    return frames


def module_map(model: LatteTransformer3DModel) -> ModuleMap:
    """Attention within each frame, then of each place over all frames: so all frames have the same places selected."""
    spatial, temporal = paths(model, "transformer_blocks"), paths(model, "temporal_transformer_blocks")
    return ModuleMap(
        blocks=(*sites(spatial, "hidden_states"), *sites(temporal, TokenArgument("timestep", dim=0, batch=0))),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in spatial),
        exit="proj_out",
        grid=latent_grid("hidden_states", model.config.patch_size),
        frames=_frames,
        noise_channels=model.config.in_channels,
        output_channels=model.out_channels,
    )
