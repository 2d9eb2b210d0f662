"""Bria Fibo 2; Bria and Fibo are of FLUX's kin."""

from __future__ import annotations

import torch
from diffusers import BriaFibo2Transformer2DModel
from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count
from torch import Tensor

from tokenprune import Arguments, AttentionSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune_adapters.common import paths, sites, text_keys


def fibo2(model: BriaFibo2Transformer2DModel) -> ModuleMap:
    """One sequence [gist of the text, image, pictures to edit]; all but the image is computed at every step.

    Where gists of a batch differ in length they come last. The refiners before work on all tokens.
    """
    config = model.config
    blocks = paths(model, "layers")
    injected = [path for path in blocks if model.get_submodule(path).cross_attention is not None]
    rotary, noisy = (TokenArgument(name, "text-image") for name in ("freqs_cis", "noise_mask"))

    def before(arguments: Arguments) -> Tensor:
        text, mask = arguments["encoder_hidden_states"], arguments.get("encoder_attention_mask")
        counts = compute_gist_count(
            [text.shape[2]] * len(text) if mask is None else mask.sum(dim=1).tolist(),
            min_gist=config.min_num_gist_tokens,
            max_gist=config.max_num_gist_tokens,
            gist_step=config.gist_step,
            min_text_len=config.gist_min_text_len,
            max_text_len=config.gist_max_text_len,
        )
        return torch.full((len(text),), counts[0] if min(counts) == max(counts) else 0)

    return ModuleMap(
        blocks=sites(blocks, TokenArgument("x", "text-image"), rotary, noisy),
        attentions=tuple(AttentionSite(f"{path}.attention", "text-image") for path in blocks),
        exit=ExitSite("final_layer", expand=blocks[-1], expand_layout="text-image"),
        grid=latent_grid("hidden_states", config.patch_size),
        constants=text_keys(injected, "cross_attention"),
        text_lengths=before,
        reads_values=True,
    )
