"""Transformers that put all into one sequence, and those that edit pictures."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR

from tokenprune_adapters.examples.example import MEGAPIXEL, Example, Latents, full, ids, times, zeros

SLOT = 4
"""Tokens for each place that a text encoder keeps for a picture (Qwen-Image 2.1)."""


def _ideogram(model: Any, at: Latents) -> dict[str, Any]:
    config, length = model.config, at.text + at.tokens
    text = torch.arange(at.text)[:, None].expand(-1, 3)
    indicator = torch.full((at.batch, length), OUTPUT_IMAGE_INDICATOR)
    indicator[:, : at.text] = LLM_TOKEN_INDICATOR
    return {
        "hidden_states": zeros(at.batch, length, config.in_channels),
        "timestep": times(at) / 1000,
        "encoder_hidden_states": zeros(at.batch, length, config.llm_features_dim),
        "position_ids": torch.cat([text, ids(at).long()]).expand(at.batch, -1, -1),
        "segment_ids": torch.ones(at.batch, length, dtype=torch.long),
        "indicator": indicator,
    }


def _qwen21(model: Any, at: Latents) -> dict[str, Any]:
    places = torch.zeros(at.text + at.tokens // SLOT, dtype=torch.bool)
    places[at.text :] = True
    return {
        "hidden_states": zeros(at.batch, at.tokens, model.config.in_channels),
        "encoder_hidden_states": zeros(at.batch, at.text, model.config.context_in_dim),
        "encoder_hidden_states_mask": full(at.batch, at.text),
        "timestep": times(at) / 1000,
        "img_shapes": [[(1, at.rows, at.columns)] for _ in range(at.batch)],
        "img_mask": places.expand(at.batch, -1),
    }


def _fibo2(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    bundles = 1 + len(config.injection_layer_ids)
    return {
        "hidden_states": zeros(at.batch, config.in_channels, at.height, at.width),
        "timestep": times(at) / 1000,
        "encoder_hidden_states": zeros(at.batch, bundles, at.text, config.cap_feat_dim),
    }


def _joyimage(model: Any, at: Latents) -> dict[str, Any]:
    return {
        "hidden_states": zeros(at.batch, 2, model.config.in_channels, 1, at.height, at.width),
        "timestep": times(at),
        "encoder_hidden_states": zeros(at.batch, at.text, model.config.text_dim),
    }


def _joyimage_plus(model: Any, at: Latents) -> dict[str, Any]:
    config = model.config
    return {
        "hidden_states": zeros(at.batch, 2 * at.tokens, config.in_channels, *config.patch_size),
        "timestep": times(at),
        "encoder_hidden_states": zeros(at.batch, at.text, config.text_dim),
        "encoder_hidden_states_mask": full(at.batch, at.text),
        "shape_list": [[(1, at.rows, at.columns)] * 2 for _ in range(at.batch)],
    }


def _minimax(model: Any, at: Latents) -> dict[str, Any]:
    """Text, sound and video; a latent frame lasts 4 of 24 frames a second, and 40 sounds a second have two channels."""
    config = model.config
    sounds = 2 * (40 * 4 * at.frames // 24)
    kinds = torch.tensor([1] * at.text + [2] * sounds + [0] * at.tokens)
    rows = torch.arange(len(kinds))
    places = zeros(len(kinds), 3)
    places[:, 0] += rows.clamp(max=at.text)
    frames = torch.arange(at.times).repeat_interleave(at.rows * at.columns)[:, None]
    places[-at.tokens :] += torch.cat([frames, ids(at)[:, 1:].repeat(at.times, 1)], dim=1)
    patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    return {
        "hidden_states": zeros(at.batch, at.tokens, config.in_channels * patch),
        "audio_hidden_states": zeros(at.batch, sounds, config.audio_in_channels),
        "encoder_hidden_states": zeros(at.batch, at.text, config.text_dim),
        "timestep": torch.tensor([0.5]),
        "timestep_indices": torch.zeros(len(kinds), dtype=torch.long),
        "token_tags": kinds,
        "position_ids": places,
        "video_indices": rows[kinds == 0],
        "audio_indices": rows[kinds == 2],
        "text_indices": rows[kinds == 1],
    }


def _cosmos3(model: Any, at: Latents) -> dict[str, Any]:
    """One video, whatever the batch: the model has no dimension for more."""
    config, length = model.config, at.text + at.tokens
    places = torch.cartesian_prod(*(torch.arange(extent) for extent in (at.times, at.rows, at.columns)))
    return {
        "input_ids": torch.zeros(at.text, dtype=torch.long),
        "text_indexes": torch.arange(at.text),
        "position_ids": torch.cat([torch.arange(at.text).expand(3, -1), places.T], dim=1),
        "und_len": at.text,
        "sequence_length": length,
        "vision_tokens": [zeros(1, config.latent_channel, at.frames, at.height, at.width)],
        "vision_token_shapes": [(at.times, at.rows, at.columns)],
        "vision_sequence_indexes": torch.arange(at.text, length),
        "vision_mse_loss_indexes": torch.arange(at.text, length),
        "vision_timesteps": torch.full((at.tokens,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(at.times)],
    }


SEQUENCES: dict[str, Example] = {
    "Ideogram4Transformer2DModel": Example(_ideogram, "separate", text=2048, size=(2048, 2048), patch=2),
    "QwenImage21Transformer2DModel": Example(_qwen21, "separate", size=MEGAPIXEL, scale=16),
    "BriaFibo2Transformer2DModel": Example(_fibo2, "separate", text=1024, size=MEGAPIXEL),
    "JoyImageEditTransformer3DModel": Example(_joyimage, "separate", text=1024, size=MEGAPIXEL),
    "JoyImageEditPlusTransformer3DModel": Example(_joyimage_plus, text=1024, size=MEGAPIXEL),
    "Cosmos3OmniTransformer": Example(
        _cosmos3, "separate", size=(720, 1280), scale=16, patch="latent_patch_size", frames=189, frame_scale=4
    ),
    "MiniMaxH3Transformer3DModel": Example(_minimax, "none", size=(768, 1344), scale=16, frames=124, frame_scale=4),
}
