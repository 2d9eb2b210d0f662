"""Small models of LTX-Video."""

from __future__ import annotations

import torch

from tiny.case import GUIDED, TEXT, B, T, Tiny, mask, noise, square, times

ltx_config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "caption_channels": TEXT,
    **square,
}
ltx_extents = {"num_frames": 2, "height": 3, "width": 4}

CASES = [
    Tiny(
        "ltx",
        "LTXVideoTransformer3DModel",
        ltx_config,
        lambda: {
            "hidden_states": noise(B, 24, 4),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            "encoder_attention_mask": mask(),
            **ltx_extents,
        },
        "LTXPipeline",
        GUIDED,
    ),
    Tiny(
        "ltx-i2v",
        "LTXVideoTransformer3DModel",
        ltx_config,
        lambda: {
            "hidden_states": noise(B, 24, 4),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": torch.cat([torch.zeros(B, 12), torch.full((B, 12), 500.0)], dim=1),
            "encoder_attention_mask": mask(),
            **ltx_extents,
        },
        "LTXImageToVideoPipeline, LTXConditionPipeline",
        GUIDED,
        "a timestep for each token; where a pipeline gives coordinates but no extents, policies see a row of tokens",
    ),
    Tiny(
        "ltx2",
        "LTX2VideoTransformer3DModel",
        {
            **ltx_config,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 4,
            "audio_cross_attention_dim": 8,
        },
        lambda: {
            "hidden_states": noise(B, 24, 4),
            "audio_hidden_states": noise(B, 7, 4),
            "encoder_hidden_states": noise(B, T, TEXT),
            "audio_encoder_hidden_states": noise(B, T, TEXT, seed=1),
            "timestep": times,
            "audio_num_frames": 7,
            **ltx_extents,
        },
        "LTX2Pipeline",
        GUIDED,
        "all of the sound is computed at every step; spatio-temporal guidance, isolated modalities",
    ),
]
