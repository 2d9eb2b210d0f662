"""Tokenizer and the small T5 text encoder of shapes-pixart, trained to know what a caption puts where.

PixArt reads its captions through a pretrained, frozen T5. Ours is trained apart from the picture model on an exact
target: ten learned queries (nine places, one background) attend once to its features, as the transformer's
cross-attention will, and must tell what the caption puts there.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tokenprune.embedded import scenes
from tokenprune.embedded.training.data import BACKGROUNDS, CELLS, FIELDS, SceneDataset, batches

MAX_TOKENS = 48
WIDTH = 96


def build_tokenizer() -> T5Tokenizer:
    """A T5 (unigram) tokenizer in which every word of the captions is one token."""
    words = sorted({word for text, _ in scenes.captions("train", 3000) for word in text.lower().split()})
    pieces = {"▁" + word.strip(",.") for word in words} | {",", "."}
    letters = set("abcdefghijklmnopqrstuvwxyz▁0123456789-'")
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    vocab += [(piece, -2.0) for piece in sorted(pieces)]
    vocab += [(letter, -12.0) for letter in sorted(letters - pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=MAX_TOKENS)


def build_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """The small T5 encoder with random weights."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=24,
        d_ff=2 * WIDTH,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


class PlaceReader(nn.Module):
    """Ten queries that read the text features by cross-attention; used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [len(values) for values in FIELDS.values()]
        self.queries = nn.Parameter(torch.randn(len(CELLS) + 1, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.cell, self.background = nn.Linear(WIDTH, sum(self.sizes)), nn.Linear(WIDTH, len(BACKGROUNDS))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, L, W], mask [B, L] (1 = text) -> logits of the places [B, 9, F] and the background [B, G]."""
        queries = self.queries.expand(len(features), -1, -1)
        read = self.attention(queries, features, features, key_padding_mask=mask == 0, need_weights=False)[0]
        return self.cell(read[:, :-1]), self.background(read[:, -1])

    def loss(self, logits: tuple[Tensor, Tensor], cells: Tensor, background: Tensor) -> Tensor:
        """Sum over attributes of the mean cross entropy."""
        total = F.cross_entropy(logits[1], background)
        for field, of_field in enumerate(logits[0].split(self.sizes, dim=-1)):
            total = total + F.cross_entropy(of_field.flatten(0, 1), cells[..., field].flatten())
        return total

    @torch.no_grad()
    def accuracy(self, logits: tuple[Tensor, Tensor], cells: Tensor) -> float:
        """Share of occupied places read entirely right."""
        guesses = torch.stack([part.argmax(-1) for part in logits[0].split(self.sizes, dim=-1)], dim=-1)
        return (guesses == cells).all(-1)[cells[..., 0] > 0].float().mean().item()


def train(out: Path, steps: int, batch_size: int, device: torch.device) -> T5EncoderModel:
    """Train the encoder and save it with its tokenizer under `out`."""
    if (out / "model.safetensors").exists():
        return T5EncoderModel.from_pretrained(out).to(device)
    torch.manual_seed(3)
    tokenizer = build_tokenizer()
    encoder, reader = build_encoder(tokenizer).to(device), PlaceReader().to(device)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    data = SceneDataset(tokenizer, size=0, start=3 << 24)
    for step, batch in enumerate(track(batches(data, batch_size, 0, steps, workers=0), "t5", total=steps)):
        tokens, cells, background = (batch[name].to(device) for name in ("tokens", "cells", "background"))
        mask = (tokens != tokenizer.pad_token_id).long()
        logits = reader(encoder(tokens, attention_mask=mask).last_hidden_state, mask)
        loss = reader.loss(logits, cells, background)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            right = reader.accuracy(logits, cells)
            print(f"t5 step {step}: loss {loss.item():.4f}, right {right:.3f}", flush=True)
    tokenizer.save_pretrained(out / "tokenizer")
    encoder.save_pretrained(out)
    return encoder
