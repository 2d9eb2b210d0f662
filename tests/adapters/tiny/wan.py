"""Small models of Wan, ChronoEdit, SkyReels and AnyFlow."""

from __future__ import annotations

import torch

from tiny.case import GUIDED, TEXT, TWICE, B, T, Tiny, noise, square, video

wan_config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "text_dim": TEXT,
    "freq_dim": 16,
    "ffn_dim": 32,
    "rope_max_seq_len": 16,
    **square,
}

WAN = [
    Tiny(
        "wan",
        "WanTransformer3DModel",
        wan_config,
        lambda: video(),
        "WanPipeline (2.1, 2.2 with both transformers)",
        TWICE,
    ),
    Tiny(
        "wan-i2v",
        "WanTransformer3DModel",
        {**wan_config, "in_channels": 8, "image_dim": TEXT, "added_kv_proj_dim": 16},
        lambda: video(channels=8, encoder_hidden_states_image=noise(B, T, TEXT)),
        "WanImageToVideoPipeline",
        TWICE,
    ),
    Tiny(
        "wan-ti2v",
        "WanTransformer3DModel",
        wan_config,
        lambda: video(timestep=torch.cat([torch.zeros(B, 12), torch.full((B, 24), 500.0)], dim=1)),
        "WanImageToVideoPipeline (2.2 TI2V 5B)",
        TWICE,
        "a timestep for each token",
    ),
    Tiny(
        "wan-vace",
        "WanVACETransformer3DModel",
        {**wan_config, "vace_layers": [0, 1], "vace_in_channels": 6},
        lambda: video(control_hidden_states=noise(B, 6, 3, 6, 8)),
        "WanVACEPipeline",
        TWICE,
    ),
]

SKYREELS = [
    Tiny(
        "skyreels-v2",
        "SkyReelsV2Transformer3DModel",
        wan_config,
        lambda: video(),
        "SkyReelsV2Pipeline, SkyReelsV2ImageToVideoPipeline",
        TWICE,
    ),
    Tiny(
        "skyreels-v2-df",
        "SkyReelsV2Transformer3DModel",
        {**wan_config, "num_frame_per_block": 2},
        lambda: video(
            frames=4,
            timestep=noise(B, 4).abs(),
            enable_diffusion_forcing=True,
            hidden_states=noise(B, 4, 4, 6, 8),
        ),
        "SkyReelsV2DiffusionForcingPipeline",
        TWICE,
        "a timestep for each frame, causal masks",
    ),
]

CHRONOEDIT = [
    Tiny(
        "chronoedit",
        "ChronoEditTransformer3DModel",
        {**wan_config, "in_channels": 8, "image_dim": TEXT, "added_kv_proj_dim": 16},
        lambda: video(channels=8, encoder_hidden_states_image=noise(B, T, TEXT)),
        "ChronoEditPipeline",
        TWICE,
    ),
]

ANYFLOW = [
    Tiny(
        "anyflow",
        "AnyFlowTransformer3DModel",
        wan_config,
        lambda: video(
            hidden_states=noise(B, 3, 4, 6, 8),
            timestep=torch.full((B, 3), 500.0),
            r_timestep=torch.full((B, 3), 400.0),
        ),
        "AnyFlowPipeline",
        GUIDED,
        "a timestep for each frame",
    ),
]
