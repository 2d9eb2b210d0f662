"""Small models of SD3 and SD3.5."""

from __future__ import annotations

from tiny.case import GUIDED, TEXT, B, T, Tiny, noise, square, times

CASES = [
    Tiny(
        "sd3",
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pooled_projection_dim": TEXT,
            "pos_embed_max_size": 16,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "pooled_projections": noise(B, TEXT),
            "timestep": times,
        },
        "StableDiffusion3Pipeline",
        GUIDED,
        "skip-layer guidance, ControlNet",
    ),
    Tiny(
        "sd3.5",
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pooled_projection_dim": TEXT,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "pooled_projections": noise(B, TEXT),
            "timestep": times,
            "block_controlnet_hidden_states": [noise(B, 24, 16)] * 3,
        },
        "StableDiffusion3Pipeline (SD3.5)",
        GUIDED,
        "dual attention layers",
    ),
]
