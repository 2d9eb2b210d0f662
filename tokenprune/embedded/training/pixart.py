"""The PixArt transformer, trained to predict noise and its own variance (Nichol, Dhariwal, arXiv 2102.09672).

Noisy latents are x_t = sqrt(a_t) x + sqrt(1 - a_t) e with the linear schedule of 1000 betas that PixArt uses
(Chen et al., arXiv 2310.00426). The first half of the output channels predicts e, weighted by 1 + 1/SNR up to
`MOST_WEIGHT` (the error of the velocity, Salimans, Ho, arXiv 2202.00512, where the picture is not all noise); the
second half interpolates the log variance between its two bounds and learns from the variational bound alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from tokenprune.embedded.training.data import Batch, encode
from tokenprune.embedded.training.loop import Settings
from tokenprune.embedded.training.t5 import WIDTH

TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
MOST_WEIGHT = 20.0


def build_transformer(settings: Settings, latent_channels: int) -> PixArtTransformer2DModel:
    """The transformer, each block starting as the identity."""
    transformer = PixArtTransformer2DModel(
        sample_size=settings.picture_size // 2,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=2 * latent_channels,
        num_layers=settings.layers,
        num_attention_heads=settings.heads,
        attention_head_dim=settings.head_dim,
        cross_attention_dim=settings.heads * settings.head_dim,
        caption_channels=WIDTH,
        use_additional_conditions=False,
        interpolation_scale=settings.growth,
    )
    zeros = [transformer.adaln_single.linear, transformer.proj_out]
    zeros += [block.attn2.to_out[0] for block in transformer.transformer_blocks]
    for layer in zeros:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for block in transformer.transformer_blocks:
        torch.nn.init.zeros_(block.scale_shift_table)
    return transformer


def grow(model: PixArtTransformer2DModel, smaller: PixArtTransformer2DModel) -> None:
    """Begin with the weights of a model of smaller pictures; positions are interpolated between those of its tokens."""
    model.load_state_dict(smaller.state_dict())


class Diffusion:
    """The forward process q(x_t | x) and the bound that the variance learns from."""

    def __init__(self, device: torch.device) -> None:
        betas = torch.linspace(FIRST_BETA, LAST_BETA, TIMESTEPS, dtype=torch.float64)
        kept = torch.cumprod(1 - betas, 0)
        before = torch.cat([kept.new_ones(1), kept[:-1]])
        posterior = betas * (1 - before) / (1 - kept)
        posterior[0] = posterior[1]  # the step to the picture itself has none; the usual stand-in
        mean_error = betas * before.sqrt() / (1 - kept) * ((1 - kept) / kept).sqrt()
        tables = {"kept": kept, "log_beta": betas.log(), "log_posterior": posterior.log(), "mean_error": mean_error}
        self.tables = {name: table.float().to(device) for name, table in tables.items()}

    def at(self, name: str, timestep: Tensor) -> Tensor:
        """A table's values [B, 1, 1, 1] at timesteps [B]."""
        return self.tables[name][timestep].view(-1, 1, 1, 1)

    def noisy(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Latents [B, C, H, W] with noise to timestep [B] in 0..999."""
        kept = self.at("kept", timestep)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    def loss(self, output: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Weighted noise error plus the variational bound (nats, mean over latents); output [B, 2C, H, W]."""
        predicted, variance = output.float().chunk(2, dim=1)
        kept = self.at("kept", timestep)
        weight = (1 + (1 - kept) / kept).clamp(max=MOST_WEIGHT)
        noise_error = (weight * (predicted - noise).square()).mean()
        share = (variance + 1) / 2
        log_posterior = self.at("log_posterior", timestep)
        log_variance = share * self.at("log_beta", timestep) + (1 - share) * log_posterior
        mean_error = self.at("mean_error", timestep) * (predicted.detach() - noise)
        bound = log_variance - log_posterior - 1 + (log_posterior - log_variance).exp()
        bound = 0.5 * (bound + mean_error.square() * (-log_variance).exp())
        return noise_error + bound.mean()


class PixArtLoss:
    """One training step's loss; text encoder and VAE stay frozen."""

    def __init__(self, settings: Settings, encoder: T5EncoderModel, tokenizer: T5Tokenizer, vae: AutoencoderKL) -> None:
        self.settings, self.tokenizer, self.vae = settings, tokenizer, vae.requires_grad_(False)
        self.encoder = encoder.eval().requires_grad_(False)
        self.device = next(encoder.parameters()).device
        self.diffusion = Diffusion(self.device)
        self.nothing = encode(tokenizer, [""]).to(self.device)

    def __call__(self, transformer: Callable[..., Any], batch: Batch, step: int) -> Tensor:
        """Loss of one batch."""
        with torch.no_grad():
            latents = self.vae.encode(batch["picture"].to(self.device)).latent_dist.sample()
            latents = latents * self.vae.config.scaling_factor
            dropped = torch.rand(len(latents), 1, device=self.device) < self.settings.caption_dropout
            tokens = torch.where(dropped, self.nothing, batch["tokens"].to(self.device))
            mask = (tokens != self.tokenizer.pad_token_id).long()
            text = self.encoder(tokens, attention_mask=mask).last_hidden_state
        timestep = torch.randint(0, TIMESTEPS, (len(latents),), device=self.device)
        noise = torch.randn_like(latents)
        output = transformer(
            hidden_states=self.diffusion.noisy(latents, noise, timestep),
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return self.diffusion.loss(output, noise, timestep)


def assemble(
    transformer: PixArtTransformer2DModel, encoder: T5EncoderModel, tokenizer: T5Tokenizer, vae: AutoencoderKL
) -> PixArtSigmaPipeline:
    """The whole pipeline, as a user loads it."""
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=TIMESTEPS, beta_start=FIRST_BETA, beta_end=LAST_BETA, beta_schedule="linear"
    )
    return PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
