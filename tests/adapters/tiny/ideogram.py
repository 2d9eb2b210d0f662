"""Small models of Ideogram 4."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR

from tiny.case import TEXT, B, T, Tiny, ids, noise, times

ideogram_config = {
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "adaln_dim": 16,
    "llm_features_dim": TEXT,
    "mrope_section": (2, 1, 1),
}


def ideogram(text: int) -> dict[str, Any]:
    """A picture of 4 x 6 tokens behind texts of two lengths, the shorter one padded on its left."""
    length = text + 24
    places = torch.cat([torch.arange(text)[:, None].expand(-1, 3), ids(4, 6, offset=100).long()])
    indicator = torch.full((B, length), OUTPUT_IMAGE_INDICATOR)
    indicator[:, :text] = LLM_TOKEN_INDICATOR
    segments = torch.ones(B, length, dtype=torch.long)
    if text:
        indicator[1, 0] = segments[1, 0] = 0
    return {
        "hidden_states": noise(B, length, 4),
        "timestep": times / 1000,
        "encoder_hidden_states": noise(B, length, TEXT),
        "position_ids": places.expand(B, -1, -1),
        "segment_ids": segments,
        "indicator": indicator,
    }


CASES = [
    Tiny(
        "ideogram4",
        "Ideogram4Transformer2DModel",
        ideogram_config,
        lambda: ideogram(T),
        "Ideogram4Pipeline, its transformer",
        "a call for each branch, of another transformer each",
        "rows of text in the output are 0 at skipped steps, and mean nothing",
    ),
    Tiny(
        "ideogram4-unconditional",
        "Ideogram4Transformer2DModel",
        ideogram_config,
        lambda: ideogram(0),
        "Ideogram4Pipeline, its unconditional transformer",
        "a call for each branch, of another transformer each",
    ),
]
