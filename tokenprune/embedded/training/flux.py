"""The FLUX transformer, trained as a rectified flow on the scenes, with guidance learnt into it.

Latents and targets are those of `sd3.py`. FLUX takes the guidance scale g as an input and draws with one call a step.
Half of the pictures of a batch learn the plain velocity (g = 1). Once the model knows it roughly, the others learn the
guided one, v + (g - 1) (v - v_0), from the model's own velocities v with the caption and v_0 without it (guidance
distillation, Meng et al., arXiv 2210.03142; with the model as its own teacher, Tang et al., arXiv 2502.12154).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from tokenprune.embedded.training import t5, text
from tokenprune.embedded.training.data import Batch, encode
from tokenprune.embedded.training.loop import Settings

DOUBLE_BLOCKS = 3
"""Blocks with weights of their own for text and image, of `Settings.layers`; the others share theirs."""

MOST_GUIDANCE = 6.0
"""Guidance scales are drawn evenly from 1 to this."""

UNGUIDED = 0.7
"""Share of the steps before guided velocities are learnt."""


def build_transformer(settings: Settings, latent_channels: int) -> FluxTransformer2DModel:
    """The transformer, each block starting as the identity."""
    along = 3 * settings.head_dim // 16 * 2  # features of a head that turn with a token's row, or column
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * latent_channels,
        num_layers=DOUBLE_BLOCKS,
        num_single_layers=max(1, settings.layers - DOUBLE_BLOCKS),
        attention_head_dim=settings.head_dim,
        num_attention_heads=settings.heads,
        joint_attention_dim=t5.WIDTH,
        pooled_projection_dim=text.WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(settings.head_dim - 2 * along, along, along),
    )
    double, single = transformer.transformer_blocks, transformer.single_transformer_blocks
    modulations = [getattr(block, name).linear for block in double for name in ("norm1", "norm1_context")]
    modulations += [block.norm.linear for block in single]
    for layer in [*modulations, transformer.norm_out.linear, transformer.proj_out]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return transformer


def pooled_encoder(encoder: torch.nn.Module) -> CLIPTextModel:
    """FLUX's kind of CLIP encoder, with the weights of one that has a projection."""
    plain = CLIPTextModel(encoder.config)
    weights = {name: value for name, value in encoder.state_dict().items() if name != "text_projection.weight"}
    known = plain.state_dict()
    plain.load_state_dict(
        {name if name in known else name.removeprefix("text_model."): v for name, v in weights.items()}
    )
    return plain


class Conditioner:
    """Captions to what the transformer takes, as FluxPipeline does it."""

    def __init__(self, clip: CLIPTextModel, encoder: T5EncoderModel) -> None:
        self.clip, self.encoder = (each.eval().requires_grad_(False) for each in (clip, encoder))

    @torch.no_grad()
    def __call__(self, clip_tokens: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's ids [B, L_c] and T5's [B, L] -> text features [B, L, t5.WIDTH], pooled features [B, text.WIDTH]."""
        return self.encoder(tokens).last_hidden_state, self.clip(clip_tokens).pooler_output


class FluxLoss:
    """One training step's loss; text encoders and VAE stay frozen. Batches hold T5's token ids."""

    def __init__(
        self,
        settings: Settings,
        clip: CLIPTextModel,
        clip_tokenizer: CLIPTokenizer,
        encoder: T5EncoderModel,
        tokenizer: T5Tokenizer,
        vae: AutoencoderKL,
    ) -> None:
        self.settings, self.vae = settings, vae.requires_grad_(False)
        self.condition = Conditioner(clip, encoder)
        self.clip_tokenizer, self.tokenizer = clip_tokenizer, tokenizer
        self.device = next(vae.parameters()).device

    def __call__(self, transformer: Callable[..., Any], batch: Batch, step: int) -> Tensor:
        """Loss of one batch."""
        config, device = self.vae.config, self.device
        with torch.no_grad():
            latents = self.vae.encode(batch["picture"].to(device)).latent_dist.sample()
            latents = (latents - config.shift_factor) * config.scaling_factor
        count, _, height, width = latents.shape
        packed = FluxPipeline._pack_latents(latents, count, latents.shape[1], height, width)
        captions = self.tokenizer.batch_decode(batch["tokens"], skip_special_tokens=True)
        dropped = torch.rand(count) < self.settings.caption_dropout
        captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
        conditions = self._conditions(captions)
        sigma = torch.sigmoid(torch.randn(count, 1, 1, device=device))
        noise = torch.randn_like(packed)
        noisy, target = (1 - sigma) * packed + sigma * noise, noise - packed
        scale = torch.ones(count, device=device)
        learner = step >= UNGUIDED * self.settings.steps
        if learner and (half := count // 2):
            scale[:half] += torch.rand(half, device=device) * (MOST_GUIDANCE - 1)
            plain, nothing = self._conditions(captions[:half]), self._conditions([""] * half)
            one = torch.ones(half, device=device)
            with torch.no_grad():
                of_caption = self._velocity(transformer, noisy[:half], sigma[:half], one, plain, height, width)
                of_nothing = self._velocity(transformer, noisy[:half], sigma[:half], one, nothing, height, width)
                more = (scale[:half] - 1).view(-1, 1, 1)
                guided = of_caption + more * (of_caption - of_nothing)
                target = torch.cat([guided.float(), target[half:]])
        velocity = self._velocity(transformer, noisy, sigma, scale, conditions, height, width)
        return F.mse_loss(velocity.float(), target)

    def _conditions(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        clip_tokens = encode(self.clip_tokenizer, captions).to(self.device)
        return self.condition(clip_tokens, encode(self.tokenizer, captions).to(self.device))

    def _velocity(
        self,
        transformer: Callable[..., Any],
        noisy: Tensor,
        sigma: Tensor,
        scale: Tensor,
        conditions: tuple[Tensor, Tensor],
        height: int,
        width: int,
    ) -> Tensor:
        features, pooled = conditions
        places = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, self.device, noisy.dtype)
        velocity: Tensor = transformer(
            hidden_states=noisy,
            encoder_hidden_states=features,
            pooled_projections=pooled,
            timestep=sigma.flatten(),
            guidance=scale,
            img_ids=places,
            txt_ids=torch.zeros(features.shape[1], 3, device=self.device),
            return_dict=False,
        )[0]
        return velocity


def assemble(
    settings: Settings,
    transformer: FluxTransformer2DModel,
    clip: CLIPTextModel,
    clip_tokenizer: CLIPTokenizer,
    encoder: T5EncoderModel,
    tokenizer: T5Tokenizer,
    vae: AutoencoderKL,
) -> FluxPipeline:
    """The whole pipeline, as a user loads it."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5 * settings.growth),
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )
