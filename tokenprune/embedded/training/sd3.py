"""The Stable Diffusion 3 transformer, trained as a rectified flow on the scenes.

Noisy latents are x_sigma = (1 - sigma) x + sigma e, the target is the velocity e - x (Liu et al., arXiv 2209.03003;
Esser et al., arXiv 2403.03206), sigma is drawn logit-normally, and shifted where pictures are larger (section 5.3.2
there): the same noise hides less of them. Text encoders and VAE stay frozen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from tokenprune.embedded.training.data import Batch, encode
from tokenprune.embedded.training.loop import Settings
from tokenprune.embedded.training.text import FEATURES_LAYER, WIDTH

LONG_TEXT = 0.05
"""Share of batches with the pipeline's default of 256 empty T5 tokens; the others have one."""


def build_transformer(settings: Settings, latent_channels: int) -> SD3Transformer2DModel:
    """The transformer, each block starting as the identity."""
    transformer = SD3Transformer2DModel(
        sample_size=settings.picture_size // 2,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=settings.layers,
        attention_head_dim=settings.head_dim,
        num_attention_heads=settings.heads,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=settings.heads * settings.head_dim,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=max(32, settings.picture_size // 2),
        qk_norm="rms_norm",
    )
    modulations = [getattr(b, n).linear for b in transformer.transformer_blocks for n in ("norm1", "norm1_context")]
    for layer in [*modulations, transformer.norm_out.linear, transformer.proj_out]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return transformer


def grow(model: SD3Transformer2DModel, smaller: SD3Transformer2DModel) -> None:
    """Begin with the weights of a model of smaller pictures; the same place of a picture keeps its position."""
    table = model.pos_embed.pos_embed
    base = smaller.config.sample_size // smaller.config.patch_size
    positions = get_2d_sincos_pos_embed(
        table.shape[-1], model.config.pos_embed_max_size, base_size=base, output_type="pt"
    )
    model.load_state_dict(smaller.state_dict() | {"pos_embed.pos_embed": positions.to(table).unsqueeze(0)})


class Conditioner:
    """Captions to what the transformer takes, as StableDiffusion3Pipeline does it without a T5 encoder."""

    def __init__(self, encoders: list[CLIPTextModelWithProjection], tokenizer: CLIPTokenizer) -> None:
        self.encoders, self.tokenizer = [e.eval().requires_grad_(False) for e in encoders], tokenizer

    @torch.no_grad()
    def __call__(self, tokens: Tensor, empty_tokens: int) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] -> text features [B, L + empty_tokens, 2 * WIDTH], pooled features [B, 2 * WIDTH]."""
        outputs = [encoder(tokens, output_hidden_states=True) for encoder in self.encoders]
        text = torch.cat([o.hidden_states[FEATURES_LAYER] for o in outputs], dim=-1)
        return F.pad(text, (0, 0, 0, empty_tokens)), torch.cat([o.text_embeds for o in outputs], dim=-1)


class SD3Loss:
    """One training step's loss; text encoders and VAE stay frozen."""

    def __init__(
        self,
        settings: Settings,
        encoders: list[CLIPTextModelWithProjection],
        tokenizer: CLIPTokenizer,
        vae: AutoencoderKL,
    ) -> None:
        self.settings, self.vae, self.condition = settings, vae.requires_grad_(False), Conditioner(encoders, tokenizer)
        self.device = next(vae.parameters()).device
        self.nothing = encode(tokenizer, [""]).to(self.device)

    def __call__(self, transformer: Callable[..., Any], batch: Batch, step: int) -> Tensor:
        """Loss of one batch."""
        config, device = self.vae.config, self.device
        with torch.no_grad():
            latents = self.vae.encode(batch["picture"].to(device)).latent_dist.sample()
            latents = (latents - config.shift_factor) * config.scaling_factor
        dropped = torch.rand(len(latents), 1, device=device) < self.settings.caption_dropout
        tokens = torch.where(dropped, self.nothing, batch["tokens"].to(device))
        long_text = random.Random(step).random() < LONG_TEXT
        text, pooled = self.condition(tokens, empty_tokens=256 if long_text else 1)
        sigma = torch.sigmoid(torch.randn(len(latents), device=device) + math.log(self.settings.growth))
        noise, level = torch.randn_like(latents), sigma.view(-1, 1, 1, 1)
        velocity = transformer(
            hidden_states=(1 - level) * latents + level * noise,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=1000 * sigma,
            return_dict=False,
        )[0]
        return F.mse_loss(velocity.float(), noise - latents)


def assemble(
    settings: Settings,
    transformer: SD3Transformer2DModel,
    encoders: list[CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
) -> StableDiffusion3Pipeline:
    """The whole pipeline, as a user loads it."""
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5 * settings.growth),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
