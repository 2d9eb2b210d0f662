"""Small models of OmniGen."""

from __future__ import annotations

import torch

from tiny.case import COND_FIRST, B, T, Tiny, noise, times

CASES = [
    Tiny(
        "omnigen",
        "OmniGenTransformer2DModel",
        {
            "in_channels": 4,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 20,
            "rope_scaling": {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
            "pos_embed_max_size": 16,
            "time_step_dim": 16,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times / 1000,
            "input_ids": torch.arange(B * T).view(B, T),
            "input_img_latents": [],
            "input_image_sizes": {},
            "attention_mask": torch.ones(30, 30).tril().clamp_min(torch.ones(30, 30).tril(25)).expand(B, -1, -1),
            "position_ids": torch.arange(30).expand(B, -1),
        },
        "OmniGenPipeline",
        COND_FIRST,
        "images to edit are part of the condition",
    ),
]
