"""The training loop that both transformers share: optimizers, learning rates, averages, checkpoints, loss log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tokenprune.embedded.training.data import Batch
from tokenprune.embedded.training.muon import Muon

Loss = Callable[[Callable[..., Any], Batch, int], Tensor]
"""(transformer, batch, step) -> scalar."""


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
    ema: float = 0.998
    averaged: bool = False  # ship the average? It lags behind in runs of a few thousand steps
    seed: int = 0
    checkpoint_every: int = 50

    @property
    def growth(self) -> float:
        """How many times the side of the first models' pictures, 64 pixels."""
        return self.picture_size / Settings.picture_size


def learning_rate(step: int, settings: Settings) -> float:
    """Factor on the learning rates: linear warm-up, constant, linear cool-down to 0."""
    left = (settings.steps - step) / max(1.0, settings.cooldown * settings.steps)
    return min(1.0, (step + 1) / settings.warmup, left)


def train(
    name: str,
    out: Path,
    settings: Settings,
    model: nn.Module,
    blocks: nn.ModuleList,
    loss_of: Loss,
    feed: Callable[[int], Iterator[Batch]],
    device: torch.device,
    compile_model: bool,
) -> nn.Module:
    """Train, resuming from `out/checkpoint.pt`; returns the transformer, averaged (EMA) if so set.

    `feed(first)` gives the batches from step `first` on. Matrices of the `blocks` learn with Muon, the rest with AdamW.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(asdict(settings), indent=2))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    in_blocks = {id(p) for n, p in blocks.named_parameters() if p.ndim == 2 and "norm" not in n and "table" not in n}
    muon = Muon([p for p in model.parameters() if id(p) in in_blocks], lr=settings.muon_lr)
    rest = [p for p in model.parameters() if id(p) not in in_blocks]
    adam = torch.optim.AdamW(rest, lr=settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    state = {"model": model, "average": average, "muon": muon, "adam": adam}
    first = _resume(out / "checkpoint.pt", state, device)
    forward: Callable[..., Any] = torch.compile(model) if compile_model else model
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    began, running = time.monotonic(), 0.0
    for step, batch in enumerate(track(feed(first), name, total=settings.steps - first), start=first):
        for optimizer, lr in ((muon, settings.muon_lr), (adam, settings.adam_lr)):
            optimizer.param_groups[0]["lr"] = lr * learning_rate(step, settings)
        torch.manual_seed(settings.seed * 1_000_003 + step)
        with autocast:
            loss = loss_of(forward, batch, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
    return average.module if settings.averaged else model


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
