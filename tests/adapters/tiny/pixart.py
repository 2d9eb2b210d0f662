"""Small models of PixArt."""

from __future__ import annotations

from tiny.case import GUIDED, TEXT, B, T, Tiny, mask, noise, square, times

CASES = [
    Tiny(
        "pixart",
        "PixArtTransformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "caption_channels": TEXT,
            "use_additional_conditions": False,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_attention_mask": mask(),
            "timestep": times,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        "PixArtAlphaPipeline, PixArtSigmaPipeline",
        GUIDED,
    ),
]
