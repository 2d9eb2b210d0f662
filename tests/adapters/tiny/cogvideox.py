"""Small models of CogVideoX, ConsisID and EasyAnimate."""

from __future__ import annotations

from tiny.case import GUIDED, TEXT, B, T, Tiny, halves, noise, square, video

cogvideox_config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "time_embed_dim": 16,
    "text_embed_dim": TEXT,
    "max_text_seq_length": T,
    "sample_width": 8,
    "sample_height": 6,
    "sample_frames": 9,
    **square,
}

COGVIDEOX = [
    Tiny(
        "cogvideox-2b",
        "CogVideoXTransformer3DModel",
        cogvideox_config,
        lambda: video(hidden_states=noise(B, 3, 4, 6, 8)),
        "CogVideoXPipeline (2b)",
        GUIDED,
    ),
    Tiny(
        "cogvideox-5b",
        "CogVideoXTransformer3DModel",
        {**cogvideox_config, "use_rotary_positional_embeddings": True},
        lambda: video(hidden_states=noise(B, 3, 4, 6, 8), image_rotary_emb=halves(3, 3, 4)),
        "CogVideoXPipeline (5b, 1.5), CogVideoXImageToVideoPipeline",
        GUIDED,
    ),
]

CONSISID = [
    Tiny(
        "consisid",
        "ConsisIDTransformer3DModel",
        {
            **cogvideox_config,
            "use_rotary_positional_embeddings": True,
            "is_train_face": True,
            "cross_attn_interval": 1,
            "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 2,
            "num_attention_heads": 3,
            "LFE_id_dim": 16,
            "LFE_vit_dim": 16,
            "LFE_depth": 3,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 2,
            "LFE_num_querie": 4,
            "LFE_output_dim": 16,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 3,
        },
        lambda: video(
            hidden_states=noise(B, 3, 4, 6, 8),
            image_rotary_emb=halves(3, 3, 4),
            id_cond=noise(B, 16),
            id_vit_hidden=[noise(B, 3, 16, seed=seed) for seed in range(3)],
        ),
        "ConsisIDPipeline",
        GUIDED,
    ),
]

EASYANIMATE = [
    Tiny(
        "easyanimate",
        "EasyAnimateTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 2,
            "mmdit_layers": 1,
            "sample_width": 8,
            "sample_height": 6,
            "time_embed_dim": 16,
            "text_embed_dim": TEXT,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
        },
        lambda: video(),
        "EasyAnimatePipeline",
        GUIDED,
    ),
]
