"""Small models of Hunyuan, pictures and videos."""

from __future__ import annotations

from typing import Any

import torch

from tiny.case import GUIDED, ONCE, TEXT, B, T, Tiny, halves, joint_config, mask, noise, square, times, video

hunyuan_config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT,
    "pooled_projection_dim": TEXT,
    "rope_axes_dim": (4, 2, 2),
    **square,
}


def hunyuan() -> dict[str, Any]:
    return video(encoder_attention_mask=mask(), pooled_projections=noise(B, TEXT), guidance=torch.full((B,), 6000.0))


IMAGES = [
    Tiny(
        "hunyuan-dit",
        "HunyuanDiT2DModel",
        {
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 16,
            "num_layers": 4,
            "cross_attention_dim": TEXT,
            "cross_attention_dim_t5": TEXT,
            "pooled_projection_dim": TEXT,
            "text_len": T,
            "text_len_t5": T,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 8),
            "timestep": times,
            "encoder_hidden_states": noise(B, T, TEXT),
            "text_embedding_mask": mask(),
            "encoder_hidden_states_t5": noise(B, T, TEXT),
            "text_embedding_mask_t5": mask(),
            "image_meta_size": torch.full((B, 6), 8.0),
            "style": torch.zeros(B, dtype=torch.long),
            "image_rotary_emb": halves(1, 4, 4),
        },
        "HunyuanDiTPipeline",
        GUIDED,
    ),
    Tiny(
        "hunyuan-image",
        "HunyuanImageTransformer2DModel",
        {
            **joint_config,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "patch_size": (2, 2),
            "rope_axes_dim": (4, 4),
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times,
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_attention_mask": mask(),
        },
        "HunyuanImagePipeline",
        "guider, a call for each branch; distilled, one call",
        "guiders may start and stop in mid-run, skip layers",
    ),
]

VIDEOS = [
    Tiny(
        "hunyuan-video",
        "HunyuanVideoTransformer3DModel",
        hunyuan_config,
        lambda: hunyuan(),
        "HunyuanVideoPipeline",
        ONCE,
    ),
    Tiny(
        "hunyuan-video-i2v",
        "HunyuanVideoTransformer3DModel",
        {**hunyuan_config, "image_condition_type": "token_replace"},
        lambda: hunyuan(),
        "HunyuanVideoImageToVideoPipeline",
        ONCE,
        "tokens of the given first frame are computed at full steps only",
    ),
    Tiny(
        "hunyuan-framepack",
        "HunyuanVideoFramepackTransformer3DModel",
        {**hunyuan_config, "has_image_proj": True, "image_proj_dim": TEXT, "has_clean_x_embedder": True},
        lambda: {
            **hunyuan(),
            "image_embeds": noise(B, T, TEXT, seed=1),
            "indices_latents": torch.arange(7, 10),
            "latents_clean": noise(B, 4, 3, 6, 8),
            "indices_latents_clean": torch.tensor([0, 10, 11]),
            "latents_history_2x": noise(B, 4, 3, 6, 8),
            "indices_latents_history_2x": torch.arange(4, 7),
            "latents_history_4x": noise(B, 4, 4, 6, 8),
            "indices_latents_history_4x": torch.arange(1, 5),
        },
        "HunyuanVideoFramepackPipeline",
        ONCE,
        "tokens of the frames before are computed at full steps only",
    ),
    Tiny(
        "hunyuan-video-1.5",
        "HunyuanVideo15Transformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "text_embed_dim": TEXT,
            "text_embed_2_dim": TEXT,
            "image_embed_dim": TEXT,
            "rope_axes_dim": (4, 2, 2),
            **square,
        },
        lambda: video(
            encoder_attention_mask=mask(),
            encoder_hidden_states_2=noise(B, T, TEXT, seed=1),
            encoder_attention_mask_2=mask(),
            image_embeds=noise(B, T, TEXT, seed=2),
        ),
        "HunyuanVideo15Pipeline",
        "guider, a call for each branch",
        "guiders may start and stop in mid-run",
    ),
]
