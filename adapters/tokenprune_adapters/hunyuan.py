"""Hunyuan-DiT, HunyuanImage, HunyuanVideo, HunyuanVideo 1.5 and HunyuanVideo-Framepack."""

from __future__ import annotations

from dataclasses import replace

from diffusers import (
    HunyuanDiT2DModel,
    HunyuanImageTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)
from torch import nn

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
from tokenprune_adapters.common import TEXT, paths, pooled_tokens, rotary, sites

HISTORY = {"latents_clean": 1, "latents_history_2x": 2, "latents_history_4x": 4}
"""Framepack's arguments with the frames before those to draw, and by how much larger their patches are."""


def dit(model: HunyuanDiT2DModel) -> ModuleMap:
    """Self-attention over the image; skip connections from the first half of the blocks to the second."""
    blocks = paths(model, "blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", rotary()),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", model.config.patch_size),
        token_inputs=("controlnet_block_samples",),
        shared=True,
        noise_channels=model.config.in_channels,
        output_channels=model.out_channels,
    )


def image(model: HunyuanImageTransformer2DModel) -> ModuleMap:
    """Joint attention over [image, text] in all blocks."""
    found = _joint(model, tuple(model.config.patch_size), "image_rotary_emb", "single_transformer_blocks")
    return replace(found, reads_values=True)


def video15(model: HunyuanVideo15Transformer3DModel) -> ModuleMap:
    """Joint attention over [image, text], valid text first; its masks are made for as much text as is computed."""
    size = model.config.patch_size
    found = _joint(model, (model.config.patch_size_t, size, size), "freqs_cis", texts=())
    return replace(found, reads_values=True)


def video(model: HunyuanVideoTransformer3DModel) -> ModuleMap:
    """Joint attention over [image, text].

    In image-to-video models that replace the tokens of the first frame, these are reference tokens: they hold the
    given picture and are computed at full steps only. There must be frames after it to draw.
    """
    size = model.config.patch_size
    names = ("freqs_cis", "image_rotary_emb")
    found = _joint(model, (model.config.patch_size_t, size, size), names, "single_transformer_blocks")
    if model.config.image_condition_type != "token_replace":
        return found

    all_frames = found.grid

    def later_frames(arguments: Arguments) -> TokenGrid:
        grid = all_frames(arguments)
        if len(grid) == 2:
            raise UnsupportedCallError(
                f"{type(model).__name__}: hidden_states: expected at least 2 latent frames, the given picture's and "
                f"those to draw after it, got {list(arguments['hidden_states'].shape)} [B, C, frames, height, width]; "
                f"there is no token to choose. Call the model with more frames, or remove() the handle"
            )
        frames, *rest = grid
        return (frames - 1, *rest) if frames > 2 else tuple(rest)

    def first_frame(arguments: Arguments) -> tuple[int, int]:
        *_, height, width = later_frames(arguments)
        return height * width, 0

    return replace(
        found,
        blocks=tuple(replace(block, leading="num_tokens") for block in found.block_sites),
        grid=later_frames,
        references=first_frame,
    )


def framepack(model: HunyuanVideoFramepackTransformer3DModel) -> ModuleMap:
    """Joint attention over [frames before, video, text]; the model cuts off the first before its last projection."""
    size = model.config.patch_size
    patch = (model.config.patch_size_t, size, size)

    def history(arguments: Arguments) -> tuple[int, int]:
        return pooled_tokens(arguments, HISTORY, (1, 2, 2)), 0

    names = ("freqs_cis", "image_rotary_emb")
    found = _joint(model, patch, names, "single_transformer_blocks")
    return replace(found, exit=ExitSite("proj_out", references=False), references=history, reads_values=True)


def _joint(
    model: nn.Module,
    patch: tuple[int, ...],
    embeddings: str | tuple[str, str],
    *more: str,
    texts: tuple[TokenArgument, ...] = (TEXT,),
) -> ModuleMap:
    """Blocks of one kind, or of two whose rotary embeddings may have different names."""
    names = (embeddings, embeddings) if isinstance(embeddings, str) else embeddings
    blocks: tuple[BlockSite, ...] = ()
    for kind, name in zip(("transformer_blocks", *more), names, strict=False):
        blocks += sites(paths(model, kind), "hidden_states", *texts, rotary(name))
    return ModuleMap(
        blocks=blocks,
        attentions=tuple(AttentionSite(f"{block.path}.attn", "image-text") for block in blocks),
        exit="proj_out",
        grid=latent_grid("hidden_states", patch),
        shared=True,
    )
