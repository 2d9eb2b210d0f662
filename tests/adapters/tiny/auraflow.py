"""Small models of AuraFlow."""

from __future__ import annotations

from tiny.case import GUIDED, TEXT, B, T, Tiny, noise, square, times

CASES = [
    Tiny(
        "auraflow",
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 256,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times / 1000,
        },
        "AuraFlowPipeline",
        GUIDED,
    ),
]
