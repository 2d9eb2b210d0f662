"""Lumina-Image 2.0, Lumina-Next and Z-Image. All are given times that grow as the noise falls."""

from __future__ import annotations

from diffusers import Lumina2Transformer2DModel, LuminaNextDiT2DModel, ZImageTransformer2DModel
from torch import Tensor

from tokenprune import (
    Arguments,
    AttentionSite,
    ExitSite,
    ModuleMap,
    TokenArgument,
    TokenGrid,
    UnsupportedCallError,
    latent_grid,
    num_tokens,
)
from tokenprune_adapters.common import paths, sites

Z_MULTIPLE = 32
"""Z-Image pads the image tokens to a multiple of this."""


def _text_lengths(arguments: Arguments) -> Tensor:
    lengths: Tensor = arguments["encoder_attention_mask"].sum(1)
    return lengths


def lumina2(model: Lumina2Transformer2DModel) -> ModuleMap:
    """One sequence [text, image], each image right behind its own text; the refiners before work on all tokens."""
    blocks = paths(model, "layers")
    return ModuleMap(
        blocks=sites(
            blocks, TokenArgument("hidden_states", "text-image"), TokenArgument("image_rotary_emb", "text-image")
        ),
        attentions=tuple(AttentionSite(f"{path}.attn", "text-image") for path in blocks),
        exit=ExitSite("norm_out", "text-image"),
        grid=latent_grid("hidden_states", model.config.patch_size),
        time_rises=True,
        text_lengths=_text_lengths,
        reads_values=True,
    )


def lumina_next(model: LuminaNextDiT2DModel) -> ModuleMap:
    """Self-attention whose scale depends on the number of tokens, and cross-attention to the text beside it."""
    blocks = paths(model, "layers")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", "image_rotary_emb"),
        attentions=tuple(AttentionSite(f"{path}.attn1", keeps_scale=True) for path in blocks),
        exit="norm_out",
        grid=latent_grid("hidden_states", model.config.patch_size),
        time_rises=True,
        noise_channels=model.config.in_channels,
        output_channels=model.out_channels,
        guidance="cond-first",
    )


def z_image(model: ZImageTransformer2DModel) -> ModuleMap:
    """One sequence [image, padding, text], as lists of pictures; the refiners before it work on all tokens."""
    patch, frames = model.all_patch_size[0], model.all_f_patch_size[0]
    joint = [TokenArgument(name, "image-text") for name in ("x", "freqs_cis", "noise_mask")]

    def grid(arguments: Arguments) -> TokenGrid:
        return latent_grid("x", (frames, patch, patch))({"x": arguments["x"][0]})

    def latents(arguments: Arguments) -> list[Tensor]:
        pictures: list[Tensor] = arguments["x"]
        if isinstance(pictures[0], list):
            raise UnsupportedCallError(
                f"{type(model).__name__}: x: expected one picture for each image of the batch, got lists of several "
                f"(the omni mode), which lie before the picture to draw with texts between them. remove() the handle "
                f"to edit pictures, or draw with ZImagePipeline"
            )
        return pictures

    def padding(arguments: Arguments) -> tuple[int, int]:
        return 0, -num_tokens(grid(arguments)) % Z_MULTIPLE

    blocks = paths(model, "layers")
    return ModuleMap(
        blocks=sites(blocks, *joint),
        attentions=tuple(AttentionSite(f"{path}.attention", "image-text") for path in blocks),
        exit=ExitSite(f"all_final_layer.{patch}-{frames}", "image-text"),
        grid=grid,
        latents="x",
        image_latents=latents,
        time="t",
        time_rises=True,
        text="cap_feats",
        token_inputs=(TokenArgument("controlnet_block_samples", "image-text"),),
        references=padding,
        guidance="cond-first",
    )
