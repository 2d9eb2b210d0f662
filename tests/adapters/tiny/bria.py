"""Small models of Bria Fibo 2."""

from __future__ import annotations

from typing import Any

from tiny.case import TEXT, TWICE, B, T, Tiny, mask, noise, times

fibo_config = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "cap_feat_dim": TEXT,
    "injection_layer_ids": (1,),
    "perceiver_num_layers": 1,
    "min_num_gist_tokens": 2,
    "max_num_gist_tokens": 4,
    "gist_step": 2,
    "gist_min_text_len": T - 1,
    "gist_max_text_len": T,
    "axes_dims": (4, 2, 2),
    "axes_lens": (32, 32, 32),
}


def fibo(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(B, 4, 8, 12),
        "timestep": times / 1000,
        "encoder_hidden_states": noise(B, 2, T, TEXT),
        **more,
    }


CASES = [
    Tiny("bria-fibo2", "BriaFibo2Transformer2DModel", fibo_config, lambda: fibo(), "BriaFibo2Pipeline", TWICE),
    Tiny(
        "bria-fibo2-edit",
        "BriaFibo2Transformer2DModel",
        {**fibo_config, "gist_min_text_len": T, "gist_max_text_len": 2 * T},
        lambda: fibo(context_latents=[noise(B, 4, 4, 6)], encoder_attention_mask=mask()),
        "BriaFibo2Pipeline with pictures to edit",
        TWICE,
        "reference tokens are computed at every step",
    ),
    Tiny(
        "bria-fibo2-texts",
        "BriaFibo2Transformer2DModel",
        fibo_config,
        lambda: fibo(context_latents=[noise(B, 4, 4, 6)], encoder_attention_mask=mask()),
        "BriaFibo2Pipeline, texts of different lengths",
        TWICE,
        "reference tokens are computed at every step",
    ),
]
