"""Small models of JoyImage."""

from __future__ import annotations

from tiny.case import GUIDED, TEXT, TWICE, B, T, Tiny, mask, noise, times

joy_config = {
    "in_channels": 4,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "text_dim": TEXT,
    "num_layers": 2,
    "rope_dim_list": [4, 2, 2],
}

CASES = [
    Tiny(
        "joyimage-edit",
        "JoyImageEditTransformer3DModel",
        joy_config,
        lambda: {
            "hidden_states": noise(B, 2, 4, 1, 8, 12),
            "timestep": times,
            "encoder_hidden_states": noise(B, T, TEXT),
        },
        "JoyImageEditPipeline",
        TWICE,
        "reference tokens are computed at full steps only",
    ),
    Tiny(
        "joyimage-edit-plus",
        "JoyImageEditPlusTransformer3DModel",
        joy_config,
        lambda: {
            "hidden_states": noise(B, 32, 4, 1, 2, 2),
            "timestep": times,
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_hidden_states_mask": mask(),
            "shape_list": [[(1, 4, 6), (1, 2, 4)], [(1, 4, 6), (1, 2, 3)]],
        },
        "JoyImageEditPlusPipeline",
        GUIDED,
        "reference tokens and padding are computed at full steps only; pictures of one size",
    ),
]
