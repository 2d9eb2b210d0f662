"""Small models of Kandinsky 5 and 6."""

from __future__ import annotations

import torch

from tiny.case import TEXT, TWICE, B, T, Tiny, noise, rows_of, times

FIVE = [
    Tiny(
        "kandinsky5",
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 4,
            "in_text_dim": TEXT,
            "in_text_dim2": TEXT,
            "time_dim": 16,
            "out_visual_dim": 4,
            "model_dim": 16,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 2, 2),
        },
        lambda: {
            "hidden_states": noise(B, 2, 6, 8, 4),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            "pooled_projections": noise(B, TEXT),
            "visual_rope_pos": [torch.arange(2), torch.arange(3), torch.arange(4)],
            "text_rope_pos": torch.arange(T),
        },
        "Kandinsky5T2VPipeline, Kandinsky5T2IPipeline",
        TWICE,
        "attention_type `regular` only",
        image_of=rows_of("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
    ),
]

SIX = [
    Tiny(
        "kandinsky6",
        "Kandinsky6Transformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": TEXT,
            "in_text_dim2": TEXT,
            "time_dim": 16,
            "model_dim": 16,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 2, 2),
            "visual_cond": False,
            "in_audio_dim": 4,
            "out_audio_dim": 4,
            "ca_rope": True,
            "cross_gates": True,
            "fix_modulation": True,
        },
        lambda: {
            "hidden_states": noise(B, 2, 6, 8, 4),
            "encoder_hidden_states": noise(B, T, TEXT),
            "pooled_projections": noise(B, TEXT),
            "timestep": times,
            "audio_hidden_states": noise(B, 7, 4),
        },
        "Kandinsky6TI2VAPipeline",
        TWICE,
        "all of the sound is computed at every step",
    ),
]
