"""Small models of Qwen-Image and Qwen-Image 2.1."""

from __future__ import annotations

import torch

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

qwen21_config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "context_in_dim": TEXT,
    "axes_dims_rope": (4, 2, 2),
    **square,
}


def slots(*pictures: int) -> torch.Tensor:
    """Where a text of T tokens keeps places for pictures of so many tokens: one behind its second, one at its end."""
    text, *rest = torch.zeros(T, dtype=torch.bool).tensor_split([2]) if len(pictures) > 1 else (torch.zeros(T).bool(),)
    parts = [text]
    for tokens, following in zip(pictures, [*rest, text[:0]], strict=True):
        parts += [torch.ones(tokens // 4, dtype=torch.bool), following]
    return torch.cat(parts).expand(B, -1)


QWEN21 = [
    Tiny(
        "qwenimage-2.1",
        "QwenImage21Transformer2DModel",
        qwen21_config,
        lambda: {
            "hidden_states": noise(B, 24, 4),
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_hidden_states_mask": mask(),
            "timestep": times / 1000,
            "img_shapes": [[(1, 4, 6)]] * B,
            "img_mask": slots(24),
        },
        "QwenImage21Pipeline",
        TWICE,
        "with its key and value cache, too; QwenImage21AttnProcessor only",
    ),
    Tiny(
        "qwenimage-2.1-edit",
        "QwenImage21Transformer2DModel",
        qwen21_config,
        lambda: {
            "hidden_states": noise(B, 52, 4),
            "encoder_hidden_states": noise(B, T + 7, TEXT),
            "encoder_hidden_states_mask": mask(T + 7),
            "timestep": times / 1000,
            "img_shapes": [[(1, 4, 7), (1, 4, 6)]] * B,
            "img_mask": slots(28, 24),
        },
        "QwenImage21Pipeline with a picture to edit",
        TWICE,
        "reference tokens are computed at every step, or once with its cache",
    ),
]
