"""Small models of Helios."""

from __future__ import annotations

import torch

from tiny.case import TEXT, TWICE, B, Tiny, noise, square, video

CASES = [
    Tiny(
        "helios",
        "HeliosTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_dim": TEXT,
            "freq_dim": 16,
            "ffn_dim": 32,
            "rope_dim": (4, 2, 2),
            "is_amplify_history": True,
            **square,
        },
        lambda: video(
            indices_hidden_states=torch.arange(7, 10).expand(B, -1),
            indices_latents_history_short=torch.arange(6, 7).expand(B, -1),
            indices_latents_history_mid=torch.arange(4, 6).expand(B, -1),
            indices_latents_history_long=torch.arange(4).expand(B, -1),
            latents_history_short=noise(B, 4, 1, 6, 8),
            latents_history_mid=noise(B, 4, 2, 6, 8),
            latents_history_long=noise(B, 4, 4, 6, 8),
        ),
        "HeliosPipeline",
        TWICE,
        "tokens of the frames before are computed at full steps only",
    ),
]
