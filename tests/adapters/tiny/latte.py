"""Small models of Latte."""

from __future__ import annotations

from tiny.case import GUIDED, TEXT, Tiny, square, video

CASES = [
    Tiny(
        "latte",
        "LatteTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "sample_size": 8,
            "patch_size": 2,
            "cross_attention_dim": 16,
            "caption_channels": TEXT,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "num_embeds_ada_norm": 1000,
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "video_length": 3,
            **square,
        },
        lambda: video(),
        "LattePipeline",
        GUIDED,
        "the same places in all frames",
    ),
]
