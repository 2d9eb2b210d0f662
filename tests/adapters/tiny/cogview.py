"""Small models of CogView and GLM-Image."""

from __future__ import annotations

import torch

from tiny.case import GUIDED, TEXT, TWICE, B, T, Tiny, joint_config, mask, noise, square, times

PLUS = [
    Tiny(
        "cogview3plus",
        "CogView3PlusTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": TEXT,
            "time_embed_dim": 16,
            "condition_dim": 4,
            "pos_embed_max_size": 16,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            **{name: torch.tensor([[16.0, 16.0]] * B) for name in ("original_size", "target_size", "crop_coords")},
        },
        "CogView3PlusPipeline",
        GUIDED,
    ),
]

ROTARY = [
    Tiny(
        "cogview4",
        "CogView4Transformer2DModel",
        {**joint_config, "time_embed_dim": 16, "condition_dim": 4, "rope_axes_dim": (8, 8)},
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            "attention_mask": mask().float(),
            **{name: torch.tensor([[16.0, 16.0]] * B) for name in ("original_size", "target_size", "crop_coords")},
        },
        "CogView4Pipeline",
        TWICE,
    ),
    Tiny(
        "glm-image",
        "GlmImageTransformer2DModel",
        {**joint_config, "time_embed_dim": 16, "condition_dim": 4, "prior_vq_quantizer_codebook_size": 10},
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "prior_token_id": torch.arange(B * 24).view(B, 24) % 10,
            "prior_token_drop": torch.zeros(B, 24, dtype=torch.bool),
            "timestep": times,
            "target_size": torch.tensor([[16.0, 16.0]] * B),
            "crop_coords": torch.zeros(B, 2),
        },
        "GlmImagePipeline",
        TWICE,
        "pictures to edit (`kv_caches`) are refused",
    ),
]
