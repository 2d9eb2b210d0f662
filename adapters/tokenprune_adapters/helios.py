"""Helios."""

from __future__ import annotations

from diffusers import HeliosTransformer3DModel

from tokenprune import Arguments, AttentionSite, BlockSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, pooled_tokens, text_keys

HISTORY = {"latents_history_short": 1, "latents_history_mid": 2, "latents_history_long": 4}
"""Arguments with the frames before those to draw, and by how much larger their patches are."""


def module_map(model: HeliosTransformer3DModel) -> ModuleMap:
    """Self-attention over [frames before, video]; the model cuts the former off before its last projection."""
    patch = tuple(model.config.patch_size)
    blocks = paths(model, "blocks")
    tokens = tuple(TokenArgument(name) for name in ("hidden_states", "temb", "rotary_emb"))

    def history(arguments: Arguments) -> tuple[int, int]:
        return pooled_tokens(arguments, HISTORY, patch), 0

    return ModuleMap(
        blocks=(
            *(BlockSite(path, tokens, counting="original_context_length") for path in blocks),
            BlockSite("norm_out", (TokenArgument("temb"),)),
        ),
        attentions=tuple(AttentionSite(f"{path}.attn1") for path in blocks),
        exit=ExitSite("proj_out", references=False),
        grid=latent_grid("hidden_states", patch),
        constants=text_keys(blocks),
        references=history,
        reads_values=True,  # its rotary embeddings ask for a device's autocast, which torch's meta device has not
    )
