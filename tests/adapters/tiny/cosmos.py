"""Small models of Cosmos."""

from __future__ import annotations

from typing import Any

import torch

from tiny.case import TEXT, TWICE, B, T, Tiny, noise, video

cosmos_config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "text_embed_dim": TEXT,
    "adaln_lora_dim": 4,
    "max_size": (4, 16, 16),
    "concat_padding_mask": False,
}

CASES = [
    Tiny("cosmos", "CosmosTransformer3DModel", cosmos_config, lambda: video(), "CosmosTextToWorldPipeline", TWICE),
    Tiny(
        "cosmos-v2w",
        "CosmosTransformer3DModel",
        {**cosmos_config, "extra_pos_embed_type": None},
        lambda: video(timestep=noise(B, 1, 3, 1, 1).abs()),
        "Cosmos2VideoToWorldPipeline",
        TWICE,
        "a timestep for each frame",
    ),
]

omni_config = {
    "head_dim": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "latent_channel": 4,
    "patch_latent_dim": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": 20,
    "rope_axes_dim": (2, 1, 1),
}


def omni(given: int = 0, text: int = T) -> dict[str, Any]:
    """A video of 3 x 3 x 4 tokens behind a text; so many of its frames are given."""
    frame, frames = 12, 3
    length = text + frame * frames
    places = torch.cartesian_prod(*(torch.arange(extent) for extent in (frames, 3, 4))) + 30
    return {
        "input_ids": torch.arange(text) % 20,
        "text_indexes": torch.arange(text),
        "position_ids": torch.cat([torch.arange(text).expand(3, -1), places.T], dim=1),
        "und_len": text,
        "sequence_length": length,
        "vision_tokens": [noise(1, 4, frames, 6, 8)],
        "vision_token_shapes": [(frames, 3, 4)],
        "vision_sequence_indexes": torch.arange(text, length),
        "vision_mse_loss_indexes": torch.arange(text + given * frame, length),
        "vision_timesteps": torch.full(((frames - given) * frame,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(given, frames)],
    }


OMNI = [
    Tiny(
        "cosmos3",
        "Cosmos3OmniTransformer",
        omni_config,
        lambda: omni(text=40),
        "Cosmos3OmniPipeline",
        TWICE,
        "not with sound or actions",
    ),
    Tiny(
        "cosmos3-i2v",
        "Cosmos3OmniTransformer",
        omni_config,
        lambda: omni(given=1),
        "Cosmos3OmniPipeline with a picture or video to go on from",
        TWICE,
        "tokens of the given frames are computed at full steps only",
    ),
]
