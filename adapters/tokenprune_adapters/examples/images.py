"""Transformers of pictures."""

from __future__ import annotations

from typing import Any

import torch

from tokenprune_adapters.examples.example import MEGAPIXEL, Example, Latents, angles, full, ids, times, zeros


def _picture(model: Any, at: Latents, **more: Any) -> dict[str, Any]:
    """Latents [B, C, h, w] and a timestep."""
    shape = (at.batch, model.config.in_channels, at.height, at.width)
    return {"hidden_states": zeros(*shape), "timestep": times(at), **more}


def _tokens(model: Any, at: Latents, **more: Any) -> dict[str, Any]:
    """Latents packed to tokens [B, N, C], texts and a timestep."""
    return {
        "hidden_states": zeros(at.batch, at.tokens, model.config.in_channels),
        "encoder_hidden_states": zeros(at.batch, at.text, model.config.joint_attention_dim),
        "timestep": times(at) / 1000,
        **more,
    }


def _flux_like(model: Any, at: Latents) -> dict[str, Any]:
    return _tokens(model, at, img_ids=ids(at), txt_ids=zeros(at.text, 3))


def _flux(model: Any, at: Latents) -> dict[str, Any]:
    pooled = {"pooled_projections": zeros(at.batch, model.config.pooled_projection_dim)}
    return {**_flux_like(model, at), **pooled, **_distilled(model, at)}


def _distilled(model: Any, at: Latents) -> dict[str, Any]:
    """The guidance scale as an argument, where the model takes it."""
    return {"guidance": torch.full((at.batch,), 3.5)} if model.config.guidance_embeds else {}


def _flux2(model: Any, at: Latents) -> dict[str, Any]:
    places = {"img_ids": ids(at, 4).expand(at.batch, -1, -1), "txt_ids": zeros(at.batch, at.text, 4)}
    return _tokens(model, at, **places, **_distilled(model, at))


def _flux3(model: Any, at: Latents) -> dict[str, Any]:
    goal = {"target_timestep": times(at) / 2000} if model.config.flow_map else {}
    return _tokens(model, at, img_ids=ids(at, 4), txt_ids=zeros(at.text, 4), **goal)


def _fibo(model: Any, at: Latents) -> dict[str, Any]:
    layers = model.config.num_layers + model.config.num_single_layers
    texts = [zeros(at.batch, at.text, model.config.text_encoder_dim) for _ in range(layers)]
    return {**_flux_like(model, at), "text_encoder_layers": texts, **_distilled(model, at)}


def _chroma(model: Any, at: Latents) -> dict[str, Any]:
    return {**_flux_like(model, at), "attention_mask": torch.ones(at.batch, at.text + at.tokens)}


def _sd3(model: Any, at: Latents) -> dict[str, Any]:
    text = zeros(at.batch, at.text, model.config.joint_attention_dim)
    pooled = zeros(at.batch, model.config.pooled_projection_dim)
    return _picture(model, at, encoder_hidden_states=text, pooled_projections=pooled)


def _pixart(model: Any, at: Latents) -> dict[str, Any]:
    width = model.config.caption_channels or model.config.cross_attention_dim
    sizes = model.config.get("use_additional_conditions")
    sizes = model.config.sample_size == 128 if sizes is None else sizes
    return _picture(
        model,
        at,
        encoder_hidden_states=zeros(at.batch, at.text, width),
        encoder_attention_mask=torch.ones(at.batch, at.text),
        added_cond_kwargs={
            "resolution": zeros(at.batch, 2) if sizes else None,
            "aspect_ratio": zeros(at.batch, 1) if sizes else None,
        },
    )


def _dit(model: Any, at: Latents) -> dict[str, Any]:
    return _picture(model, at, class_labels=torch.zeros(at.batch, dtype=torch.long))


def _sizes(at: Latents, *names: str) -> dict[str, Any]:
    return {name: zeros(at.batch, 2) for name in names}


def _cogview(model: Any, at: Latents) -> dict[str, Any]:
    text = zeros(at.batch, at.text, model.config.text_embed_dim)
    sizes = _sizes(at, "original_size", "target_size", "crop_coords")
    return _picture(model, at, encoder_hidden_states=text, **sizes)


def _glm(model: Any, at: Latents) -> dict[str, Any]:
    return _picture(
        model,
        at,
        encoder_hidden_states=zeros(at.batch, at.text, model.config.text_embed_dim),
        prior_token_id=torch.zeros(at.batch, at.tokens, dtype=torch.long),
        prior_token_drop=torch.zeros(at.batch, at.tokens, dtype=torch.bool),
        **_sizes(at, "target_size", "crop_coords"),
    )


def _qwen(model: Any, at: Latents) -> dict[str, Any]:
    mask = torch.ones(at.batch, at.text, dtype=torch.long)
    return _tokens(
        model, at, encoder_hidden_states_mask=mask, img_shapes=[[(1, at.rows, at.columns)] for _ in range(at.batch)]
    )


def _z_image(model: Any, at: Latents) -> dict[str, Any]:
    return {
        "x": [zeros(model.config.in_channels, 1, at.height, at.width) for _ in range(at.batch)],
        "t": times(at) / 1000,
        "cap_feats": [zeros(at.text, model.config.cap_feat_dim) for _ in range(at.batch)],
    }


def _lumina2(model: Any, at: Latents) -> dict[str, Any]:
    text = zeros(at.batch, at.text, model.config.cap_feat_dim)
    return _picture(model, at, encoder_hidden_states=text, encoder_attention_mask=full(at.batch, at.text))


def _lumina_next(model: Any, at: Latents) -> dict[str, Any]:
    channels = model.config.hidden_size // model.config.num_attention_heads // 2
    return _picture(
        model,
        at,
        encoder_hidden_states=zeros(at.batch, at.text, model.config.cross_attention_dim),
        encoder_mask=full(at.batch, at.text),
        image_rotary_emb=torch.zeros(at.rows, at.columns, channels, dtype=torch.complex64),
        cross_attention_kwargs={"base_sequence_length": 64**2},
    )


def _hunyuan_dit(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    extra = config.use_style_cond_and_image_meta_size
    return _picture(
        model,
        at,
        encoder_hidden_states=zeros(at.batch, config.text_len, config.cross_attention_dim),
        text_embedding_mask=full(at.batch, config.text_len),
        encoder_hidden_states_t5=zeros(at.batch, config.text_len_t5, config.cross_attention_dim_t5),
        text_embedding_mask_t5=full(at.batch, config.text_len_t5),
        image_meta_size=zeros(at.batch, 6) if extra else None,
        style=torch.zeros(at.batch, dtype=torch.long) if extra else None,
        image_rotary_emb=angles(at.tokens, config.attention_head_dim),
    )


def _hunyuan_image(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    second: dict[str, Any] = {}
    if config.text_embed_2_dim is not None:
        glyphs = zeros(at.batch, 128, config.text_embed_2_dim)
        second = {"encoder_hidden_states_2": glyphs, "encoder_attention_mask_2": full(at.batch, 128)}
    text = zeros(at.batch, at.text, config.text_embed_dim)
    mask = full(at.batch, at.text)
    return _picture(model, at, encoder_hidden_states=text, encoder_attention_mask=mask, **second)


def _hidream(model: Any, at: Latents) -> dict[str, Any]:
    width = model.config.caption_channels
    layers = len(model.config.llama_layers)
    return {
        "hidden_states": zeros(at.batch, model.config.in_channels, at.height, at.width),
        "timesteps": times(at),
        "encoder_hidden_states_t5": zeros(at.batch, at.text, width[0]),
        "encoder_hidden_states_llama3": zeros(layers, at.batch, at.text, width[1]),
        "pooled_embeds": zeros(at.batch, model.config.text_emb_dim),
    }


def _omnigen(model: Any, at: Latents) -> dict[str, Any]:
    length = at.text + 1 + at.tokens
    return _picture(
        model,
        at,
        input_ids=torch.zeros(at.batch, at.text, dtype=torch.long),
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=torch.ones(at.batch, length, length),
        position_ids=torch.arange(length).expand(at.batch, -1),
    )


def _prx(model: Any, at: Latents) -> dict[str, Any]:
    text = zeros(at.batch, at.text, model.config.context_in_dim)
    return _picture(model, at, encoder_hidden_states=text, attention_mask=full(at.batch, at.text))


def _ernie(model: Any, at: Latents) -> dict[str, Any]:
    text = zeros(at.batch, at.text, model.config.text_in_dim)
    return _picture(model, at, text_bth=text, text_lens=torch.full((at.batch,), at.text))


def _krea(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    return {
        "hidden_states": zeros(at.batch, at.tokens, config.in_channels),
        "encoder_hidden_states": zeros(at.batch, at.text, config.num_text_layers, config.text_hidden_dim),
        "timestep": times(at) / 1000,
        "position_ids": torch.cat([zeros(at.text, 3), ids(at)]),
        "encoder_attention_mask": full(at.batch, at.text),
    }


def _auraflow(model: Any, at: Latents) -> dict[str, Any]:
    return _picture(model, at, encoder_hidden_states=zeros(at.batch, at.text, model.config.joint_attention_dim))


def _packed(make: Any, guidance: Any, text: int = 512) -> Example:
    return Example(make, guidance, text, MEGAPIXEL, patch=2)


IMAGES: dict[str, Example] = {
    "SD3Transformer2DModel": Example(_sd3, text=333),
    "PixArtTransformer2DModel": Example(_pixart, text=300),
    "DiTTransformer2DModel": Example(_dit, text=0),
    "Transformer2DModel": Example(_pixart, text=120),
    "AuraFlowTransformer2DModel": Example(_auraflow, text=256, size=MEGAPIXEL),
    "CogView3PlusTransformer2DModel": Example(_cogview, text=224),
    "CogView4Transformer2DModel": Example(_cogview, "separate", text=1024),
    "GlmImageTransformer2DModel": Example(_glm, "separate", size=MEGAPIXEL),
    "FluxTransformer2DModel": _packed(_flux, "none"),
    "Flux2Transformer2DModel": _packed(_flux2, "none"),
    "Flux3Transformer2DModel": _packed(_flux3, "separate"),
    "ChromaTransformer2DModel": _packed(_chroma, "separate"),
    "BriaTransformer2DModel": _packed(_flux_like, "batched", text=128),
    "BriaFiboTransformer2DModel": Example(_fibo, text=1024, size=MEGAPIXEL, scale=16, patch=1),
    "LongCatImageTransformer2DModel": _packed(_flux_like, "separate"),
    "OvisImageTransformer2DModel": _packed(_flux_like, "separate", text=256),
    "QwenImageTransformer2DModel": _packed(_qwen, "separate"),
    "Krea2Transformer2DModel": _packed(_krea, "separate"),
    "ZImageTransformer2DModel": Example(_z_image, size=MEGAPIXEL, patch="all_patch_size"),
    "Lumina2Transformer2DModel": Example(_lumina2, "separate", text=256),
    "LuminaNextDiT2DModel": Example(_lumina_next, text=256),
    "HunyuanDiT2DModel": Example(_hunyuan_dit, text=77),
    "HunyuanImageTransformer2DModel": Example(_hunyuan_image, "separate", text=1000, size=(2048, 2048), scale=32),
    "HiDreamImageTransformer2DModel": Example(_hidream, text=128, size=MEGAPIXEL),
    "OmniGenTransformer2DModel": Example(_omnigen, size=MEGAPIXEL),
    "PRXTransformer2DModel": Example(_prx, text=256, size=(512, 512)),
    "ErnieImageTransformer2DModel": Example(_ernie, size=MEGAPIXEL, scale=16),
}
