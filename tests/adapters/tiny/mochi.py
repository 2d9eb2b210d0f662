"""Small models of Mochi."""

from __future__ import annotations

from tiny.case import GUIDED, TEXT, T, Tiny, mask, square, video

CASES = [
    Tiny(
        "mochi",
        "MochiTransformer3DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "text_embed_dim": TEXT,
            "time_embed_dim": 16,
            "max_sequence_length": T,
            **square,
        },
        lambda: video(encoder_attention_mask=mask()),
        "MochiPipeline",
        GUIDED,
    ),
]
