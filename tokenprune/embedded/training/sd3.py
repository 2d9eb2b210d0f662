"""The Stable Diffusion 3 transformer, trained as a rectified flow on the scenes.

Noisy latents are x_sigma = (1 - sigma) x + sigma e, the target is the velocity e - x (Liu et al., arXiv 2209.03003;
Esser et al., arXiv 2403.03206), sigma is drawn logit-normally. Text encoders and VAE stay frozen.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from rich.progress import track
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from tokenprune.embedded.training.data import SceneDataset, batches, encode
from tokenprune.embedded.training.muon import Muon
from tokenprune.embedded.training.text import FEATURES_LAYER, WIDTH


@dataclass(frozen=True)
class Settings:
    """What a run is made of; stored beside its checkpoints."""

    picture_size: int = 64
    layers: int = 8
    heads: int = 4
    head_dim: int = 32
    steps: int = 6000
    batch_size: int = 32
    muon_lr: float = 4e-3
    adam_lr: float = 1.5e-3
    warmup: int = 200
    cooldown: float = 0.3  # share of the steps over which the learning rate falls to 0
    caption_dropout: float = 0.1
    long_text: float = 0.05  # share of batches with the pipeline's default of 256 empty T5 tokens, else 1
    ema: float = 0.998
    averaged: bool = (
        False  # whether the averaged weights are the result; they lag behind in runs of a few thousand steps
    )
    seed: int = 0
    checkpoint_every: int = 50


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


def learning_rate(step: int, settings: Settings) -> float:
    """Factor on the learning rates: linear warm-up, constant, linear cool-down to 0."""
    left = (settings.steps - step) / max(1.0, settings.cooldown * settings.steps)
    return min(1.0, (step + 1) / settings.warmup, left)


def train(
    out: Path,
    settings: Settings,
    encoders: list[CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    device: torch.device,
    compile_model: bool,
) -> SD3Transformer2DModel:
    """Train, resuming from `out/checkpoint.pt`; returns the transformer, averaged (EMA) if so set."""
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(asdict(settings), indent=2))
    model = build_transformer(settings, vae.config.latent_channels).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    in_blocks = {id(p) for n, p in model.transformer_blocks.named_parameters() if p.ndim == 2 and "norm" not in n}
    muon = Muon([p for p in model.parameters() if id(p) in in_blocks], lr=settings.muon_lr)
    rest = [p for p in model.parameters() if id(p) not in in_blocks]
    adam = torch.optim.AdamW(rest, lr=settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    state = {"model": model, "average": average, "muon": muon, "adam": adam}
    first = _resume(out / "checkpoint.pt", state, device)
    forward = torch.compile(model) if compile_model else model
    condition = Conditioner(encoders, tokenizer)
    nothing = encode(tokenizer, [""]).to(device)
    data = SceneDataset(tokenizer, settings.picture_size)
    feed = batches(data, settings.batch_size, first, settings.steps, workers=1)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    began, running = time.monotonic(), 0.0
    for step, batch in enumerate(track(feed, "sd3", total=settings.steps - first), start=first):
        for optimizer, lr in ((muon, settings.muon_lr), (adam, settings.adam_lr)):
            optimizer.param_groups[0]["lr"] = lr * learning_rate(step, settings)
        torch.manual_seed(settings.seed * 1_000_003 + step)
        with torch.no_grad():
            latents = vae.encode(batch["picture"].to(device)).latent_dist.sample()
            latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        dropped = torch.rand(len(latents), 1, device=device) < settings.caption_dropout
        tokens = torch.where(dropped, nothing, batch["tokens"].to(device))
        long_text = random.Random(step).random() < settings.long_text
        text, pooled = condition(tokens, empty_tokens=256 if long_text else 1)
        sigma = torch.sigmoid(torch.randn(len(latents), device=device))
        noise, level = torch.randn_like(latents), sigma.view(-1, 1, 1, 1)
        with autocast:
            velocity = forward(
                hidden_states=(1 - level) * latents + level * noise,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=1000 * sigma,
                return_dict=False,
            )[0]
        loss = F.mse_loss(velocity.float(), noise - latents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        average.update_parameters(model)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if step % 10 == 0 or step == settings.steps - 1:
            row = {"step": step, "loss": running, "seconds": time.monotonic() - began}
            print(json.dumps(row), flush=True)
            with (out / "loss.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if (step + 1) % settings.checkpoint_every == 0 or step == settings.steps - 1:
            _checkpoint(out / "checkpoint.pt", state, step + 1)
    trained: SD3Transformer2DModel = average.module if settings.averaged else model
    return trained


def _checkpoint(path: Path, state: dict[str, Any], step: int) -> None:
    torch.save({name: part.state_dict() for name, part in state.items()} | {"step": step}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def _resume(path: Path, state: dict[str, Any], device: torch.device) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=device)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


def assemble(
    transformer: SD3Transformer2DModel,
    encoders: list[CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
) -> StableDiffusion3Pipeline:
    """The whole pipeline, as a user loads it."""
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
