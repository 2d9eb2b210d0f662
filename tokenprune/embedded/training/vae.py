"""A small AutoencoderKL, two pixels to a latent, trained on the scenes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor
from transformers import CLIPTokenizer

from tokenprune.embedded.training.data import SceneDataset, batches

KL_WEIGHT = 1e-5
CROP = 32


def build(size: int) -> AutoencoderKL:
    """The autoencoder with random weights; `size` is the picture's side in pixels."""
    return AutoencoderKL(
        block_out_channels=(24, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def random_crops(pictures: Tensor, side: int = CROP) -> Tensor:
    """One crop [B, 3, side, side] of each picture: convolutions learn as much from a quarter of the pixels."""
    height, width = pictures.shape[-2:]
    ys, xs = torch.randint(0, height - side + 1, (len(pictures),)), torch.randint(0, width - side + 1, (len(pictures),))
    crops = [p[:, y : y + side, x : x + side] for p, y, x in zip(pictures, ys.tolist(), xs.tolist(), strict=True)]
    return torch.stack(crops)


def train(
    out: Path, tokenizer: CLIPTokenizer, size: int, steps: int, batch_size: int, device: torch.device
) -> AutoencoderKL:
    """Train and save under `out`, with the scaling that gives the latents mean 0 and variance 1."""
    if (out / "config.json").exists():
        return AutoencoderKL.from_pretrained(out).to(device)
    torch.manual_seed(0)
    vae = build(size).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    data = SceneDataset(tokenizer, size=size, start=1 << 30)
    for step, batch in enumerate(track(batches(data, batch_size, 0, steps, workers=1), "vae", total=steps)):
        picture = random_crops(batch["picture"].to(device))
        posterior = vae.encode(picture).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(decoded, picture) + F.mse_loss(decoded, picture) + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            psnr = -10 * torch.log10(F.mse_loss(decoded, picture) / 4).item()
            print(f"vae step {step}: loss {loss.item():.4f}, PSNR {psnr:.2f} dB", flush=True)
    with torch.no_grad():
        many = [vae.encode(b["picture"].to(device)).latent_dist.mean for b in batches(data, 64, 0, 8, workers=0)]
    latents = torch.cat(many)
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    vae.save_pretrained(out)
    return vae
