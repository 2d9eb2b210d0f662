"""Transformers of videos."""

from __future__ import annotations

from typing import Any

import torch

from tokenprune_adapters.examples.example import Example, Latents, angles, full, times, zeros


def _video(model: Any, at: Latents, text_channels: int, **more: Any) -> dict[str, Any]:
    """Latents [B, C, F, h, w], texts and a timestep."""
    return {
        "hidden_states": zeros(at.batch, model.config.in_channels, at.frames, at.height, at.width),
        "encoder_hidden_states": zeros(at.batch, at.text, text_channels),
        "timestep": times(at),
        **more,
    }


def _wan(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    picture = (
        {} if config.image_dim is None else {"encoder_hidden_states_image": zeros(at.batch, 257, config.image_dim)}
    )
    return _video(model, at, config.text_dim, **picture)


def _vace(model: Any, at: Latents) -> dict[str, Any]:
    control = zeros(at.batch, model.config.vace_in_channels, at.frames, at.height, at.width)
    return {**_wan(model, at), "control_hidden_states": control}


def _hunyuan(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    scale = {"guidance": torch.full((at.batch,), 6000.0)} if config.guidance_embeds else {}
    return _video(
        model,
        at,
        config.text_embed_dim,
        encoder_attention_mask=full(at.batch, at.text),
        pooled_projections=zeros(at.batch, config.pooled_projection_dim),
        **scale,
    )


def _hunyuan15(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    return _video(
        model,
        at,
        config.text_embed_dim,
        encoder_attention_mask=full(at.batch, at.text),
        encoder_hidden_states_2=zeros(at.batch, 256, config.text_embed_2_dim),
        encoder_attention_mask_2=full(at.batch, 256),
        image_embeds=zeros(at.batch, 729, config.image_embed_dim),
    )


def _ltx(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    return {
        "hidden_states": zeros(at.batch, at.tokens, config.in_channels),
        "encoder_hidden_states": zeros(at.batch, at.text, config.caption_channels),
        "timestep": times(at),
        "encoder_attention_mask": full(at.batch, at.text),
        "num_frames": at.times,
        "height": at.rows,
        "width": at.columns,
    }


def _ltx2(model: Any, at: Latents) -> dict[str, Any]:
    sounds = 6 * at.frames  # 8 frames at 24 a second, 25 sounds a second, in latents
    return {
        **_ltx(model, at),
        "audio_hidden_states": zeros(at.batch, sounds, model.config.audio_in_channels),
        "audio_encoder_hidden_states": zeros(at.batch, at.text, model.config.caption_channels),
        "audio_num_frames": sounds,
    }


def _cogvideox(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    found = _video(model, at, config.text_embed_dim)
    found["hidden_states"] = found["hidden_states"].transpose(1, 2)
    if config.use_rotary_positional_embeddings:
        found["image_rotary_emb"] = angles(at.tokens, config.attention_head_dim)
    return found


def _easyanimate(model: Any, at: Latents) -> dict[str, Any]:
    second = model.config.text_embed_dim_t5
    more = {} if second is None else {"encoder_hidden_states_t5": zeros(at.batch, at.text, second)}
    return _video(model, at, model.config.text_embed_dim, **more)


def _mochi(model: Any, at: Latents) -> dict[str, Any]:
    return _video(model, at, model.config.text_embed_dim, encoder_attention_mask=full(at.batch, at.text))


def _allegro(model: Any, at: Latents) -> dict[str, Any]:
    extents = (at.times, at.rows, at.columns)
    channels = model.config.attention_head_dim // 3
    places = torch.meshgrid(*(torch.arange(extent) for extent in extents), indexing="ij")
    return _video(
        model,
        at,
        model.config.caption_channels,
        attention_mask=torch.ones(at.batch, at.frames, at.height, at.width),
        encoder_attention_mask=full(at.batch, at.text),
        image_rotary_emb=(
            tuple(angles(extent, channels) for extent in extents),
            tuple(axis.flatten()[None] for axis in places),
        ),
    )


def _consisid(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    if not config.is_train_face:
        return _cogvideox(model, at)
    views = [zeros(at.batch, 577, config.LFE_vit_dim) for _ in range(config.LFE_num_scale)]
    return {**_cogvideox(model, at), "id_cond": zeros(at.batch, config.LFE_id_dim), "id_vit_hidden": views}


def _anyflow(model: Any, at: Latents) -> dict[str, Any]:
    found = _video(model, at, model.config.text_dim)
    each = times(at)[:, None].expand(-1, at.frames)
    frames_first = found["hidden_states"].transpose(1, 2)
    return {**found, "hidden_states": frames_first, "timestep": each, "r_timestep": each / 2}


HISTORY = (16, 2, 2)
"""Latent frames before those to draw, the farthest first; the last are the given picture's and the one before."""


def _before(model: Any, at: Latents, names: tuple[str, str, str], batched: bool) -> dict[str, Any]:
    """The frames before, by what their arguments are called, and the numbers of all frames."""
    found: dict[str, Any] = {}
    numbers = torch.arange(sum(HISTORY) + at.frames).split([*HISTORY, at.frames])
    for name, count, places in zip(names, HISTORY, numbers[:-1], strict=True):
        found[name] = zeros(at.batch, model.config.in_channels, count, at.height, at.width)
        found[f"indices_{name}"] = places[None] if batched else places
    found["indices_hidden_states" if batched else "indices_latents"] = numbers[-1][None] if batched else numbers[-1]
    return found


def _framepack(model: Any, at: Latents) -> dict[str, Any]:
    names = ("latents_history_4x", "latents_history_2x", "latents_clean")
    picture = zeros(at.batch, 729, model.config.image_proj_dim)
    return {**_hunyuan(model, at), "image_embeds": picture, **_before(model, at, names, batched=False)}


def _helios(model: Any, at: Latents) -> dict[str, Any]:
    names = ("latents_history_long", "latents_history_mid", "latents_history_short")
    return _video(model, at, model.config.text_dim, **_before(model, at, names, batched=True))


def _motif(model: Any, at: Latents) -> dict[str, Any]:
    picture = model.config.image_embed_dim
    more = {} if picture is None else {"image_embeds": zeros(at.batch, 256, picture)}
    mask = full(at.batch, at.text)
    return _video(model, at, model.config.text_embed_dim, encoder_attention_mask=mask, **more)


def _kandinsky6(model: Any, at: Latents) -> dict[str, Any]:
    found = _kandinsky(model, at)
    del found["text_rope_pos"]
    sounds = 7 * at.frames  # 4 frames at 24 a second, 43 sounds a second, in latents
    return {**found, "audio_hidden_states": zeros(at.batch, sounds, model.config.in_audio_dim)}


def _cosmos(model: Any, at: Latents) -> dict[str, Any]:
    padding = {"padding_mask": zeros(1, 1, at.height, at.width)} if model.config.concat_padding_mask else {}
    return _video(model, at, model.config.text_embed_dim, **padding)


def _latte(model: Any, at: Latents) -> dict[str, Any]:
    return _video(model, at, model.config.caption_channels or model.config.cross_attention_dim)


def _kandinsky(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
    return {
        "hidden_states": zeros(at.batch, at.frames, at.height, at.width, channels),
        "encoder_hidden_states": zeros(at.batch, at.text, config.in_text_dim),
        "timestep": times(at),
        "pooled_projections": zeros(at.batch, config.in_text_dim2),
        "visual_rope_pos": [torch.arange(extent) for extent in (at.times, at.rows, at.columns)],
        "text_rope_pos": torch.arange(at.text),
    }


VIDEOS: dict[str, Example] = {
    "WanTransformer3DModel": Example(_wan, "separate", size=(480, 832), frames=81, frame_scale=4),
    "WanVACETransformer3DModel": Example(_vace, "separate", size=(480, 832), frames=81, frame_scale=4),
    "ChronoEditTransformer3DModel": Example(_wan, "separate", size=(480, 832), frames=81, frame_scale=4),
    "AnyFlowTransformer3DModel": Example(_anyflow, size=(480, 832), frames=81, frame_scale=4),
    "SkyReelsV2Transformer3DModel": Example(_wan, "separate", size=(544, 960), frames=97, frame_scale=4),
    "HunyuanVideoTransformer3DModel": Example(_hunyuan, "none", text=256, size=(720, 1280), frames=129, frame_scale=4),
    "HunyuanVideoFramepackTransformer3DModel": Example(
        _framepack, "none", text=256, size=(720, 1280), frames=33, frame_scale=4
    ),
    "HunyuanVideo15Transformer3DModel": Example(
        _hunyuan15, "separate", text=1000, size=(480, 848), scale=16, frames=121, frame_scale=4
    ),
    "LTXVideoTransformer3DModel": Example(_ltx, text=128, size=(512, 704), scale=32, frames=161, frame_scale=8),
    "LTX2VideoTransformer3DModel": Example(_ltx2, text=1024, size=(512, 768), scale=32, frames=121, frame_scale=8),
    "CogVideoXTransformer3DModel": Example(_cogvideox, text=226, frames=49, frame_scale=4),
    "ConsisIDTransformer3DModel": Example(_consisid, text=226, frames=49, frame_scale=4),
    "EasyAnimateTransformer3DModel": Example(_easyanimate, text=256, size=(512, 512), frames=49, frame_scale=4),
    "MochiTransformer3DModel": Example(_mochi, text=256, size=(480, 848), frames=19, frame_scale=6),
    "MotifVideoTransformer3DModel": Example(_motif, "separate", size=(736, 1280), frames=121, frame_scale=4),
    "HeliosTransformer3DModel": Example(_helios, "separate", size=(384, 640), frames=33, frame_scale=4),
    "AllegroTransformer3DModel": Example(_allegro, frames=88, frame_scale=4),
    "CosmosTransformer3DModel": Example(_cosmos, "separate", size=(704, 1280), frames=121, frame_scale=8),
    "LatteTransformer3DModel": Example(_latte, text=120, frames=16),
    "Kandinsky5Transformer3DModel": Example(_kandinsky, "separate", size=(512, 768), frames=121, frame_scale=4),
    "Kandinsky6Transformer3DModel": Example(_kandinsky6, "separate", size=(512, 768), frames=121, frame_scale=4),
}
