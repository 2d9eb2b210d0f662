"""JoyImage-Edit and JoyImage-Edit-Plus."""

from __future__ import annotations

from diffusers import JoyImageEditPlusTransformer3DModel, JoyImageEditTransformer3DModel

from tokenprune import (
    Arguments,
    AttentionSite,
    ModuleMap,
    TokenArgument,
    TokenGrid,
    UnsupportedCallError,
    latent_grid,
    num_tokens,
)
from tokenprune_adapters.common import TEXT, after, frames_or_picture, paths, sites


def edit(model: JoyImageEditTransformer3DModel) -> ModuleMap:
    """Joint attention over [image, text]; the model puts the picture to draw before those to edit, all of one size."""
    grid = latent_grid("hidden_states", tuple(model.config.patch_size))

    def others(arguments: Arguments) -> tuple[int, int]:
        pictures = arguments["hidden_states"].shape[1] if arguments["hidden_states"].ndim == 6 else 1
        return 0, (pictures - 1) * num_tokens(grid(arguments))

    blocks = paths(model, "double_blocks")
    rotary = TokenArgument("image_rotary_emb", dim=0, batch=None, item=0)
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", rotary),
        attentions=tuple(AttentionSite(f"{path}.attn", "image-text") for path in blocks),
        exit="proj_out",
        grid=grid,
        token_inputs=(TEXT,),
        references=others,
        shared=True,
    )


def edit_plus(model: JoyImageEditPlusTransformer3DModel) -> ModuleMap:
    """The same with pictures cut into patches [B, N, C, t, h, w]; those to edit, of any size, and padding follow."""

    def grid(arguments: Arguments) -> TokenGrid:
        extents = {tuple(shapes[0]) for shapes in arguments["shape_list"]}
        if len(extents) > 1:
            raise UnsupportedCallError(
                f"{type(model).__name__}: shape_list: expected pictures of one size to draw, got "
                f"{', '.join(map(str, sorted(extents)))}; call the model for each size"
            )
        return frames_or_picture(*extents.pop())

    blocks = paths(model, "double_blocks")
    return ModuleMap(
        blocks=sites(blocks, "hidden_states", "image_rotary_emb"),
        attentions=tuple(AttentionSite(f"{path}.attn", "image-text") for path in blocks),
        exit="proj_out",
        grid=grid,
        references=after("hidden_states", grid),
    )
