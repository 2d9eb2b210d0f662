"""Small models of Allegro."""

from __future__ import annotations

import torch

from tiny.case import GUIDED, TEXT, B, Tiny, ids, mask, noise, rows_of, video

CASES = [
    Tiny(
        "allegro",
        "AllegroTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "cross_attention_dim": 24,
            "caption_channels": TEXT,
            "sample_height": 6,
            "sample_width": 8,
            "sample_frames": 3,
        },
        lambda: video(
            attention_mask=torch.ones(B, 3, 6, 8),
            encoder_attention_mask=mask(),
            image_rotary_emb=(
                tuple((noise(extent, 4).cos(), noise(extent, 4).sin()) for extent in (3, 3, 4)),
                tuple(column[None] for column in ids(3, 3, 4, columns=4).long()[:, 1:].T),
            ),
        ),
        "AllegroPipeline",
        GUIDED,
        "a pruned step computes two tokens at least",
        image_of=rows_of(
            "hidden_states", "encoder_hidden_states", "timestep", "attention_mask", "encoder_attention_mask"
        ),
    ),
]
