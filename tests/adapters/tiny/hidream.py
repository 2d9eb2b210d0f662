"""Small models of HiDream."""

from __future__ import annotations

from typing import Any

from tiny.case import GUIDED, TEXT, B, T, Tiny, noise, rows_of, square, times

hidream_rows = rows_of(
    "hidden_states",
    "timesteps",
    "encoder_hidden_states_t5",
    "pooled_embeds",
    encoder_hidden_states_llama3=lambda value, image: value[:, image : image + 1],
)


def hidream(height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(B, 4, height, width),
        "timesteps": times,
        "encoder_hidden_states_t5": noise(B, T, TEXT),
        "encoder_hidden_states_llama3": noise(4, B, T, TEXT),
        "pooled_embeds": noise(B, TEXT),
    }


hidream_config = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "caption_channels": [TEXT, TEXT],
    "text_emb_dim": TEXT,
    "axes_dims_rope": (4, 2, 2),
    "max_resolution": (8, 12),
    "llama_layers": [0, 1, 2, 3],
    "force_inference_output": True,
    **square,
}

CASES = [
    Tiny(
        "hidream",
        "HiDreamImageTransformer2DModel",
        hidream_config,
        lambda: hidream(8, 8),
        "HiDreamImagePipeline",
        GUIDED,
        image_of=hidream_rows,
    ),
    Tiny(
        "hidream-padded",
        "HiDreamImageTransformer2DModel",
        hidream_config,
        lambda: hidream(6, 10),
        "HiDreamImagePipeline, images that are not square",
        GUIDED,
        "padding tokens are computed at full steps only",
        image_of=hidream_rows,
    ),
]
