"""Small models of Qwen-Image."""

from __future__ import annotations

from tiny.case import TEXT, TWICE, B, T, Tiny, mask, noise, square, times

qwen_config = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 2, 2),
    **square,
}

CASES = [
    Tiny(
        "qwenimage",
        "QwenImageTransformer2DModel",
        qwen_config,
        lambda: {
            "hidden_states": noise(B, 24, 16),
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_hidden_states_mask": mask().long(),
            "timestep": times / 1000,
            "img_shapes": [[(1, 4, 6)]] * B,
        },
        "QwenImagePipeline",
        TWICE,
        "ControlNet",
    ),
    Tiny(
        "qwenimage-edit",
        "QwenImageTransformer2DModel",
        {**qwen_config, "zero_cond_t": True},
        lambda: {
            "hidden_states": noise(B, 30, 16),
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_hidden_states_mask": mask().long(),
            "timestep": times / 1000,
            "img_shapes": [[(1, 4, 6), (1, 2, 3)]] * B,
        },
        "QwenImageEditPipeline, QwenImageEditPlusPipeline",
        TWICE,
        "reference tokens are computed at full steps only",
    ),
]
