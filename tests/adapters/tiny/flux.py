"""Small models of FLUX and its kin."""

from __future__ import annotations

from typing import Any

import torch

from tiny.case import GUIDED, ONCE, TEXT, TWICE, B, T, Tiny, ids, mask, noise, square, times


def flux_inputs(columns: int = 3, batched: bool = False, references: bool = False, **more: Any) -> dict[str, Any]:
    """An image of 4 x 6 tokens as a sequence, if wanted with a reference image of 2 x 3 behind it."""
    positions = ids(4, 6, columns=columns)
    if references:
        positions = torch.cat([positions, ids(2, 3, group=1, columns=columns)])
    texts = torch.zeros(T, columns)
    return {
        "hidden_states": noise(B, len(positions), 4),
        "encoder_hidden_states": noise(B, T, TEXT),
        "timestep": times / 1000,
        "img_ids": positions.expand(B, -1, -1) if batched else positions,
        "txt_ids": texts.expand(B, -1, -1) if batched else texts,
        **more,
    }


flux_config = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 2, 2),
    **square,
}

CASES = [
    Tiny(
        "flux",
        "FluxTransformer2DModel",
        {"pooled_projection_dim": TEXT, "guidance_embeds": True, **flux_config},
        lambda: flux_inputs(
            pooled_projections=noise(B, TEXT),
            guidance=torch.full((B,), 3.5),
            controlnet_block_samples=[noise(B, 24, 16)],
        ),
        "FluxPipeline (dev, schnell)",
        ONCE,
        "ControlNet; true guidance with a call for each branch",
    ),
    Tiny(
        "flux-kontext",
        "FluxTransformer2DModel",
        {"pooled_projection_dim": TEXT, **flux_config},
        lambda: flux_inputs(references=True, pooled_projections=noise(B, TEXT)),
        "FluxKontextPipeline",
        ONCE,
        "reference tokens are computed at full steps only",
    ),
    Tiny(
        "flux2",
        "Flux2Transformer2DModel",
        {**flux_config, "axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 16},
        lambda: flux_inputs(columns=4, batched=True, references=True, guidance=torch.full((B,), 4.0)),
        "Flux2Pipeline, Flux2KleinPipeline, Flux2KleinKVPipeline",
        "dev: distilled, one call; klein: a call for each branch",
        "reference tokens are computed at full steps only, by klein-KV in its first call alone; its steps are not "
        "skipped",
    ),
    Tiny(
        "flux3",
        "Flux3Transformer2DModel",
        {**flux_config, "cond_in_channels": 4, "axes_dims_rope": (2, 2, 2, 2), "timestep_channels": 16},
        lambda: flux_inputs(columns=4),
        "Flux3ModularPipeline",
        TWICE,
    ),
    Tiny(
        "flux3-edit",
        "Flux3Transformer2DModel",
        {
            **flux_config,
            "cond_in_channels": 4,
            "axes_dims_rope": (2, 2, 2, 2),
            "timestep_channels": 16,
            "flow_map": True,
        },
        lambda: flux_inputs(
            columns=4,
            image_cond_hidden_states=noise(B, 6, 4),
            image_cond_ids=ids(2, 3, group=1, columns=4),
            target_timestep=times / 2000,
        ),
        "Flux3DistilledModularPipeline, with pictures to edit",
        ONCE,
        "reference tokens are computed at every step",
    ),
    Tiny(
        "chroma",
        "ChromaTransformer2DModel",
        {**flux_config, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        lambda: flux_inputs(attention_mask=torch.cat([mask(), torch.ones(B, 24, dtype=torch.bool)], dim=1).float()),
        "ChromaPipeline",
        TWICE,
    ),
    Tiny(
        "bria",
        "BriaTransformer2DModel",
        {**flux_config, "pooled_projection_dim": TEXT},
        lambda: flux_inputs(),
        "BriaPipeline",
        GUIDED,
    ),
    Tiny(
        "bria-fibo",
        "BriaFiboTransformer2DModel",
        {**flux_config, "text_encoder_dim": TEXT},
        lambda: flux_inputs(
            references=True,
            text_encoder_layers=[noise(B, T, TEXT, seed=seed) for seed in range(4)],
            joint_attention_kwargs={
                "attention_mask": torch.cat([mask(), torch.ones(B, 30, dtype=torch.bool)], dim=1)[:, None, None]
            },
        ),
        "BriaFiboPipeline, BriaFiboEditPipeline",
        GUIDED,
        "reference tokens are computed at full steps only",
    ),
    Tiny(
        "longcat",
        "LongCatImageTransformer2DModel",
        {**flux_config, "pooled_projection_dim": TEXT},
        lambda: flux_inputs(),
        "LongCatImagePipeline, LongCatImageEditPipeline",
        TWICE,
    ),
    Tiny(
        "ovis",
        "OvisImageTransformer2DModel",
        {**flux_config, "out_channels": 4},
        lambda: flux_inputs(),
        "OvisImagePipeline",
        TWICE,
    ),
]
