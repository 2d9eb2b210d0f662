"""HiDream-I1."""

from __future__ import annotations

from diffusers import HiDreamImageTransformer2DModel

from tokenprune import Arguments, AttentionSite, ModuleMap, TokenArgument, latent_grid, num_tokens
from tokenprune_adapters.common import paths, sites


def module_map(model: HiDreamImageTransformer2DModel) -> ModuleMap:
    """Joint attention over [image, text]; images that are not square are padded, and padding is never selected."""
    grid = latent_grid("hidden_states", model.config.patch_size)
    embeddings = TokenArgument("image_rotary_emb", "image-text")
    double, single = paths(model, "double_stream_blocks"), paths(model, "single_stream_blocks")

    def padding(arguments: Arguments) -> tuple[int, int]:
        height, width = arguments["hidden_states"].shape[-2:]
        return 0, 0 if height == width else model.max_seq - num_tokens(grid(arguments))

    return ModuleMap(
        blocks=(
            *sites(double, "hidden_states", "hidden_states_masks", embeddings),
            *sites(single, TokenArgument("hidden_states_masks", "image-text"), embeddings),
        ),
        attentions=tuple(AttentionSite(f"{path}.block.attn1", "image-text") for path in (*double, *single)),
        exit="final_layer",
        grid=grid,
        time="timesteps",
        text="encoder_hidden_states_t5",
        references=padding,
        reads_values=True,
    )
