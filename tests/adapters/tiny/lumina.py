"""Small models of Z-Image and Lumina."""

from __future__ import annotations

import torch

from tiny.case import COND_FIRST, TEXT, TWICE, B, T, Tiny, mask, noise, rows_of, times

CASES = [
    Tiny(
        "z-image",
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 16,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": TEXT,
            "axes_dims": [4, 2, 2],
            "axes_lens": [128, 32, 32],
        },
        lambda: {
            "x": [noise(4, 1, 8, 12, seed=i) for i in range(B)],
            "t": times / 1000,
            "cap_feats": [noise(T, TEXT), noise(T + 30, TEXT)],
        },
        "ZImagePipeline",
        COND_FIRST,
        "padding tokens are computed at full steps only; images of one size; the omni mode is refused; one full step "
        "where `cfg_truncation` ends guidance",
        image_of=rows_of("x", "t", "cap_feats"),
    ),
    Tiny(
        "lumina2",
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (64, 32, 32),
            "cap_feat_dim": TEXT,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times / 1000,
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_attention_mask": mask(),
        },
        "Lumina2Pipeline",
        TWICE,
        "texts of different lengths; guidance may end in mid-run (`cfg_trunc_ratio`)",
    ),
    Tiny(
        "lumina-next",
        "LuminaNextDiT2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "cross_attention_dim": TEXT,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times / 1000,
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_mask": mask(),
            "image_rotary_emb": torch.polar(torch.ones(4, 6, 4), noise(4, 6, 4)),
            "cross_attention_kwargs": {"base_sequence_length": 16},
        },
        "LuminaPipeline",
        COND_FIRST,
    ),
]
