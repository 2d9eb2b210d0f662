"""One small model of every class that has an adapter, what to call it with, and what users want to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

B, T, TEXT = 2, 5, 16
"""Images, text tokens and text channels of all calls."""


@dataclass(frozen=True)
class Tiny:
    """A small model.

    Attributes:
        name: what the tests call it.
        model: the class, by name.
        config: its arguments.
        inputs: makes the arguments of a call.
        pipelines: where it is used.
        guidance: how the pipelines call it.
        notes: anything else.
    """

    name: str
    model: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    pipelines: str
    guidance: str
    notes: str = ""
    image_of: Callable[[Any, int], Any] | None = None

    def make(self) -> nn.Module:
        """The model, all of its parameters random: many start with layers of zeros, which hide everything."""
        import diffusers

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(diffusers, self.model)(**self.config).eval()
            for parameter in model.parameters():
                scale = 1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.data.normal_().mul_(0.7 * scale).add_(0.3 if parameter.ndim == 1 else 0)
        return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def mask(length: int = T) -> Tensor:
    """Two texts, the second one token shorter."""
    return torch.tensor([[True] * length, [True] * (length - 1) + [False]])


def ids(*extents: int, offset: int = 0, group: float = 0, columns: int = 3) -> Tensor:
    """Positions [N, columns] of the tokens of an image, behind a column for the image's number."""
    axes = torch.meshgrid(*(torch.arange(extent) + offset for extent in extents), indexing="ij")
    found = torch.stack([axis.flatten() for axis in axes], dim=1)
    first, last = torch.full((len(found), 1), int(group)), torch.zeros(len(found), columns - 1 - found.shape[1])
    return torch.cat([first, found, last], dim=1).float()


times = torch.tensor([500.0, 500.0])
square = {"num_attention_heads": 2, "attention_head_dim": 8}

GUIDED = "one call, unconditional half first"
COND_FIRST = "one call, conditional half first"
TWICE = "a call for each branch"
ONCE = "distilled, one call"


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

IMAGES = [
    Tiny(
        "sd3",
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pooled_projection_dim": TEXT,
            "pos_embed_max_size": 16,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "pooled_projections": noise(B, TEXT),
            "timestep": times,
        },
        "StableDiffusion3Pipeline",
        GUIDED,
        "skip-layer guidance, ControlNet",
    ),
    Tiny(
        "sd3.5",
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pooled_projection_dim": TEXT,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "pooled_projections": noise(B, TEXT),
            "timestep": times,
            "block_controlnet_hidden_states": [noise(B, 24, 16)] * 3,
        },
        "StableDiffusion3Pipeline (SD3.5)",
        GUIDED,
        "dual attention layers",
    ),
    Tiny(
        "pixart",
        "PixArtTransformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "caption_channels": TEXT,
            "use_additional_conditions": False,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_attention_mask": mask(),
            "timestep": times,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        "PixArtAlphaPipeline, PixArtSigmaPipeline",
        GUIDED,
    ),
    Tiny(
        "dit",
        "DiTTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2, "num_embeds_ada_norm": 10, **square},
        lambda: {"hidden_states": noise(B, 4, 8, 8), "timestep": times.long(), "class_labels": torch.tensor([3, 7])},
        "DiTPipeline",
        COND_FIRST,
        "square images only",
    ),
    Tiny(
        "transformer2d",
        "Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "patch_size": 2,
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "cross_attention_dim": 16,
            "caption_channels": TEXT,
            "use_additional_conditions": False,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 8),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        "early PixArt-alpha checkpoints",
        GUIDED,
        "with `patch_size` only; square images only",
    ),
    Tiny(
        "auraflow",
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 256,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times / 1000,
        },
        "AuraFlowPipeline",
        GUIDED,
    ),
    Tiny(
        "cogview3plus",
        "CogView3PlusTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": TEXT,
            "time_embed_dim": 16,
            "condition_dim": 4,
            "pos_embed_max_size": 16,
            **square,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            **{name: torch.tensor([[16.0, 16.0]] * B) for name in ("original_size", "target_size", "crop_coords")},
        },
        "CogView3PlusPipeline",
        GUIDED,
    ),
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
        "Flux2Pipeline, Flux2KleinPipeline",
        "dev: distilled, one call; klein: a call for each branch",
        "reference tokens are computed at full steps only; not the cached-reference mode of klein-KV",
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


def halves(frames: int, height: int, width: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, dim] of positions."""
    angles = noise(frames * height * width, dim)
    return angles.cos(), angles.sin()


def rows_of(*names: str, **others: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Says that arguments have the images in their first dimension, or where else they have them."""

    def image_of(inputs: Any, image: int) -> Any:
        found = {name: inputs[name][image : image + 1] for name in names}
        return {**inputs, **found, **{name: take(inputs[name], image) for name, take in others.items()}}

    return image_of


hidream_rows = rows_of(
    "hidden_states",
    "timesteps",
    "encoder_hidden_states_t5",
    "pooled_embeds",
    encoder_hidden_states_llama3=lambda value, image: value[:, image : image + 1],
)


def hidream(height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(B, 4, height, width),
        "timesteps": times,
        "encoder_hidden_states_t5": noise(B, T, TEXT),
        "encoder_hidden_states_llama3": noise(4, B, T, TEXT),
        "pooled_embeds": noise(B, TEXT),
    }


hidream_config = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "caption_channels": [TEXT, TEXT],
    "text_emb_dim": TEXT,
    "axes_dims_rope": (4, 2, 2),
    "max_resolution": (8, 12),
    "llama_layers": [0, 1, 2, 3],
    "force_inference_output": True,
    **square,
}
joint_config = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "text_embed_dim": TEXT, **square}
qwen_config = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 2, 2),
    **square,
}

IMAGES += [
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
    Tiny(
        "z-image",
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 16,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": TEXT,
            "axes_dims": [4, 2, 2],
            "axes_lens": [128, 32, 32],
        },
        lambda: {
            "x": [noise(4, 1, 8, 12, seed=i) for i in range(B)],
            "t": times / 1000,
            "cap_feats": [noise(T, TEXT), noise(T + 30, TEXT)],
        },
        "ZImagePipeline",
        COND_FIRST,
        "padding tokens are computed at full steps only; images of one size; not the omni mode; one full step where "
        "`cfg_truncation` ends guidance",
        image_of=rows_of("x", "t", "cap_feats"),
    ),
    Tiny(
        "lumina2",
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (64, 32, 32),
            "cap_feat_dim": TEXT,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times / 1000,
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_attention_mask": mask(),
        },
        "Lumina2Pipeline",
        TWICE,
        "texts of different lengths; guidance may end in mid-run (`cfg_trunc_ratio`)",
    ),
    Tiny(
        "lumina-next",
        "LuminaNextDiT2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "cross_attention_dim": TEXT,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times / 1000,
            "encoder_hidden_states": noise(B, T, TEXT),
            "encoder_mask": mask(),
            "image_rotary_emb": torch.polar(torch.ones(4, 6, 4), noise(4, 6, 4)),
            "cross_attention_kwargs": {"base_sequence_length": 16},
        },
        "LuminaPipeline",
        COND_FIRST,
    ),
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
    Tiny(
        "cogview4",
        "CogView4Transformer2DModel",
        {**joint_config, "time_embed_dim": 16, "condition_dim": 4, "rope_axes_dim": (8, 8)},
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            "attention_mask": mask().float(),
            **{name: torch.tensor([[16.0, 16.0]] * B) for name in ("original_size", "target_size", "crop_coords")},
        },
        "CogView4Pipeline",
        TWICE,
    ),
    Tiny(
        "glm-image",
        "GlmImageTransformer2DModel",
        {**joint_config, "time_embed_dim": 16, "condition_dim": 4, "prior_vq_quantizer_codebook_size": 10},
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "encoder_hidden_states": noise(B, T, TEXT),
            "prior_token_id": torch.arange(B * 24).view(B, 24) % 10,
            "prior_token_drop": torch.zeros(B, 24, dtype=torch.bool),
            "timestep": times,
            "target_size": torch.tensor([[16.0, 16.0]] * B),
            "crop_coords": torch.zeros(B, 2),
        },
        "GlmImagePipeline",
        TWICE,
    ),
    Tiny(
        "hidream",
        "HiDreamImageTransformer2DModel",
        hidream_config,
        lambda: hidream(8, 8),
        "HiDreamImagePipeline",
        GUIDED,
        image_of=hidream_rows,
    ),
    Tiny(
        "hidream-padded",
        "HiDreamImageTransformer2DModel",
        hidream_config,
        lambda: hidream(6, 10),
        "HiDreamImagePipeline, images that are not square",
        GUIDED,
        "padding tokens are computed at full steps only",
        image_of=hidream_rows,
    ),
    Tiny(
        "omnigen",
        "OmniGenTransformer2DModel",
        {
            "in_channels": 4,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 20,
            "rope_scaling": {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
            "pos_embed_max_size": 16,
            "time_step_dim": 16,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times / 1000,
            "input_ids": torch.arange(B * T).view(B, T),
            "input_img_latents": [],
            "input_image_sizes": {},
            "attention_mask": torch.ones(30, 30).tril().clamp_min(torch.ones(30, 30).tril(25)).expand(B, -1, -1),
            "position_ids": torch.arange(30).expand(B, -1),
        },
        "OmniGenPipeline",
        COND_FIRST,
        "images to edit are part of the condition",
    ),
    Tiny(
        "prx",
        "PRXTransformer2DModel",
        {"in_channels": 4, "context_in_dim": TEXT, "hidden_size": 16, "num_heads": 2, "depth": 2, "axes_dim": [4, 4]},
        lambda: {
            "hidden_states": noise(B, 4, 8, 12),
            "timestep": times / 1000,
            "encoder_hidden_states": noise(B, T, TEXT),
            "attention_mask": mask(),
        },
        "PRXPipeline",
        GUIDED,
    ),
    Tiny(
        "ernie",
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": TEXT,
            "rope_axes_dim": (4, 2, 2),
        },
        lambda: {
            "hidden_states": noise(B, 4, 4, 6),
            "timestep": times,
            "text_bth": noise(B, T, TEXT),
            "text_lens": torch.tensor([T, T - 1]),
        },
        "ErnieImagePipeline",
        GUIDED,
    ),
    Tiny(
        "krea2",
        "Krea2Transformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "timestep_embed_dim": 16,
            "text_hidden_dim": TEXT,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 32,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        lambda: {
            "hidden_states": noise(B, 24, 4),
            "encoder_hidden_states": noise(B, T, 2, TEXT),
            "timestep": times / 1000,
            "position_ids": torch.cat([torch.zeros(T, 3), ids(4, 6)]),
            "encoder_attention_mask": mask(),
        },
        "Krea2Pipeline",
        TWICE,
    ),
    Tiny(
        "kandinsky5",
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 4,
            "in_text_dim": TEXT,
            "in_text_dim2": TEXT,
            "time_dim": 16,
            "out_visual_dim": 4,
            "model_dim": 16,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 2, 2),
        },
        lambda: {
            "hidden_states": noise(B, 2, 6, 8, 4),
            "encoder_hidden_states": noise(B, T, TEXT),
            "timestep": times,
            "pooled_projections": noise(B, TEXT),
            "visual_rope_pos": [torch.arange(2), torch.arange(3), torch.arange(4)],
            "text_rope_pos": torch.arange(T),
        },
        "Kandinsky5T2VPipeline, Kandinsky5T2IPipeline",
        TWICE,
        "attention_type `regular` only",
        image_of=rows_of("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
    ),
]


def video(frames: int = 3, channels: int = 4, **more: Any) -> dict[str, Any]:
    """Latents [B, C, frames, 6, 8] and what most models take besides."""
    return {
        "hidden_states": noise(B, channels, frames, 6, 8),
        "encoder_hidden_states": noise(B, T, TEXT),
        "timestep": times,
        **more,
    }


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
ltx_config = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "caption_channels": TEXT,
    **square,
}
ltx_extents = {"num_frames": 2, "height": 3, "width": 4}
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

VIDEOS = [
    Tiny(
        "wan",
        "WanTransformer3DModel",
        wan_config,
        lambda: video(),
        "WanPipeline (2.1, 2.2 with two transformers: `apply` to each)",
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
        "all of the sound is computed at every step",
    ),
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
    Tiny(
        "mochi",
        "MochiTransformer3DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "text_embed_dim": TEXT,
            "time_embed_dim": 16,
            "max_sequence_length": T,
            **square,
        },
        lambda: video(encoder_attention_mask=mask()),
        "MochiPipeline",
        GUIDED,
    ),
    Tiny(
        "allegro",
        "AllegroTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "cross_attention_dim": 24,
            "caption_channels": TEXT,
            "sample_height": 6,
            "sample_width": 8,
            "sample_frames": 3,
        },
        lambda: video(
            attention_mask=torch.ones(B, 3, 6, 8),
            encoder_attention_mask=mask(),
            image_rotary_emb=(
                tuple((noise(extent, 4).cos(), noise(extent, 4).sin()) for extent in (3, 3, 4)),
                tuple(column[None] for column in ids(3, 3, 4, columns=4).long()[:, 1:].T),
            ),
        ),
        "AllegroPipeline",
        GUIDED,
        "two tokens at least",
        image_of=rows_of(
            "hidden_states", "encoder_hidden_states", "timestep", "attention_mask", "encoder_attention_mask"
        ),
    ),
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
    Tiny(
        "latte",
        "LatteTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "sample_size": 8,
            "patch_size": 2,
            "cross_attention_dim": 16,
            "caption_channels": TEXT,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "num_embeds_ada_norm": 1000,
            "activation_fn": "gelu-approximate",
            "attention_bias": True,
            "video_length": 3,
            **square,
        },
        lambda: video(),
        "LattePipeline",
        GUIDED,
        "the same places in all frames",
    ),
]


def hunyuan() -> dict[str, Any]:
    return video(encoder_attention_mask=mask(), pooled_projections=noise(B, TEXT), guidance=torch.full((B,), 6000.0))


ALL = IMAGES + VIDEOS
