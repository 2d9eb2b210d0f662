"""Small models of Krea 2."""

from __future__ import annotations

import torch

from tiny.case import TEXT, TWICE, B, T, Tiny, ids, mask, noise, times

CASES = [
    Tiny(
        "krea2",
        "Krea2Transformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "timestep_embed_dim": 16,
            "text_hidden_dim": TEXT,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 32,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        lambda: {
            "hidden_states": noise(B, 24, 4),
            "encoder_hidden_states": noise(B, T, 2, TEXT),
            "timestep": times / 1000,
            "position_ids": torch.cat([torch.zeros(T, 3), ids(4, 6)]),
            "encoder_attention_mask": mask(),
        },
        "Krea2Pipeline",
        TWICE,
    ),
]
