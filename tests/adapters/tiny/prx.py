"""Small models of PRX."""

from __future__ import annotations

from tiny.case import GUIDED, TEXT, B, T, Tiny, mask, noise, times

CASES = [
    Tiny(
        "prx",
        "PRXTransformer2DModel",
        {"in_channels": 4, "context_in_dim": TEXT, "hidden_size": 16, "num_heads": 2, "depth": 2, "axes_dim": [4, 4]},
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times / 1000,
            "encoder_hidden_states": noise(B, T, TEXT),
            "attention_mask": mask(),
        },
        "PRXPipeline",
        GUIDED,
    ),
]
