"""Small models of Motif-Video."""

from __future__ import annotations

from tiny.case import TEXT, B, T, Tiny, joint_config, mask, noise, video

motif_config = {
    **joint_config,
    "num_single_layers": 3,
    "rope_axes_dim": (4, 2, 2),
    "enable_text_cross_attention_dual": True,
    "enable_text_cross_attention_single": True,
}

CASES = [
    Tiny(
        "motif",
        "MotifVideoTransformer3DModel",
        motif_config,
        lambda: video(encoder_attention_mask=mask()),
        "MotifVideoPipeline",
        "guider, a call for each branch",
    ),
    Tiny(
        "motif-i2v",
        "MotifVideoTransformer3DModel",
        {**motif_config, "num_decoder_layers": 2, "image_embed_dim": TEXT},
        lambda: video(encoder_attention_mask=mask(), image_embeds=noise(B, T, TEXT, seed=1)),
        "MotifVideoImage2VideoPipeline",
        "guider, a call for each branch",
        "blocks with two streams of the video",
    ),
]
