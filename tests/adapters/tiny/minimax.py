"""Small models of MiniMax-H3."""

from __future__ import annotations

from typing import Any

import torch

from tiny.case import ONCE, TEXT, B, T, Tiny, noise

GIVEN, SOUNDS, VIDEO = 12, 7, 24


def minimax() -> dict[str, Any]:
    """A text, a given frame, sounds and a video of 2 x 3 x 4 tokens, one behind the other."""
    length = T + GIVEN + SOUNDS + VIDEO
    kinds = torch.tensor([1] * T + [0] * GIVEN + [2] * SOUNDS + [0] * VIDEO)
    places = torch.arange(length)
    positions = torch.zeros(length, 3)
    positions[:, 0] = places.clamp(max=T)
    frame = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0))
    positions[T : T + GIVEN, 1:] = frame
    positions[-VIDEO:, 1:] = frame.repeat(2, 1)
    positions[-VIDEO:, 0] += torch.tensor([0.0, 1.7]).repeat_interleave(GIVEN)
    return {
        "hidden_states": noise(B, GIVEN + VIDEO, 16),
        "audio_hidden_states": noise(B, SOUNDS, 4),
        "encoder_hidden_states": noise(B, T, TEXT),
        "timestep": torch.tensor([0.2, 0.3, 1.0]),
        "timestep_indices": torch.tensor([0] * T + [2] * GIVEN + [1] * SOUNDS + [0] * VIDEO),
        "token_tags": kinds,
        "position_ids": positions,
        "video_indices": places[kinds == 0],
        "audio_indices": places[kinds == 2],
        "text_indices": places[kinds == 1],
    }


CASES = [
    Tiny(
        "minimax-h3",
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "hidden_size": 16,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 4,
            "text_dim": TEXT,
            "freq_dim": 16,
            "time_embed_hidden_dim": 16,
            "time_embed_dim": 16,
            "rope_freq_dim": 1,
        },
        minimax,
        "MiniMaxH3ModularPipeline",
        ONCE,
        "all of the sound and given frames are computed at every step",
    ),
]
