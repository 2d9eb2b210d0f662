"""Small models of DiT, and what came of it."""

from __future__ import annotations

import torch

from tiny.case import COND_FIRST, GUIDED, TEXT, B, T, Tiny, noise, square, times

CASES = [
    Tiny(
        "dit",
        "DiTTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2, "num_embeds_ada_norm": 10, **square},
        lambda: {"hidden_states": noise(B, 4, 8, 8), "timestep": times.long(), "class_labels": torch.tensor([3, 7])},
        "DiTPipeline",
        COND_FIRST,
        "square images only",
    ),
    Tiny(
        "transformer2d",
        "Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "patch_size": 2,
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "cross_attention_dim": 16,
            "caption_channels": TEXT,
            "use_additional_conditions": False,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 8),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        "early PixArt-alpha checkpoints",
        GUIDED,
        "with `patch_size` only; square images only",
    ),
]
