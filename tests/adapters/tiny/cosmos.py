"""Small models of Cosmos."""

from __future__ import annotations

from tiny.case import TEXT, TWICE, B, Tiny, noise, video

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
