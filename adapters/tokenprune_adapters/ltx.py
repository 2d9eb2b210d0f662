"""LTX-Video and LTX-2."""

from __future__ import annotations

from diffusers import LTX2VideoTransformer3DModel, LTXVideoTransformer3DModel

from tokenprune import Arguments, AttentionSite, ModuleMap, TokenArgument, TokenGrid, num_tokens
from tokenprune_adapters.common import paths, sites


def _grid(arguments: Arguments) -> TokenGrid:
    """The extents given with the tokens; where only coordinates are given, tokens lie in a row."""
    extents = tuple(arguments.get(name) for name in ("num_frames", "height", "width"))
    tokens: int = arguments["hidden_states"].shape[1]
    return (1, tokens) if None in extents else tuple(int(extent) for extent in extents if extent is not None)


def _conditions(arguments: Arguments) -> tuple[int, int]:
    """Tokens of given pictures lie before those of the video."""
    return arguments["hidden_states"].shape[1] - num_tokens(_grid(arguments)), 0


def video(model: LTXVideoTransformer3DModel) -> ModuleMap:
    """Self-attention over the video, which comes as tokens; the timestep may be one for each token."""
    blocks = paths(model, "transformer_blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", "image_rotary_emb"),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out",
        grid=_grid,
        token_inputs=("hidden_states", "timestep"),
        references=_conditions,
    )


def audio_video(model: LTX2VideoTransformer3DModel) -> ModuleMap:
    """Self-attention over the video, and attention of the sound to it; all of the sound is computed at every step."""
    blocks = paths(model, "transformer_blocks")
    dim = 2 if model.config.rope_type == "split" else 1
    embeddings = [TokenArgument(name, dim=dim) for name in ("video_rotary_emb", "ca_video_rotary_emb")]
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", *embeddings),
        attentions=tuple(
            AttentionSite(f"{path}.{name}") for path in blocks for name in ("attn1", "video_to_audio_attn")
        ),
        exit="proj_out",
        grid=_grid,
        token_inputs=("timestep",),
        references=_conditions,
    )
