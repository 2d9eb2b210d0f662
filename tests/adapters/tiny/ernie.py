"""Small models of ERNIE-Image."""

from __future__ import annotations

import torch

from tiny.case import GUIDED, TEXT, B, T, Tiny, noise, times

CASES = [
    Tiny(
        "ernie",
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": TEXT,
            "rope_axes_dim": (4, 2, 2),
        },
        lambda: {
            "hidden_states": noise(B, 4, 4, 6),
            "timestep": times,
            "text_bth": noise(B, T, TEXT),
            "text_lens": torch.tensor([T, T - 1]),
        },
        "ErnieImagePipeline",
        GUIDED,
    ),
]
