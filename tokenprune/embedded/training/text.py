"""Tokenizer and the two small CLIP text encoders, trained to know what a caption puts where.

Stable Diffusion 3 takes text features from pretrained, frozen CLIP encoders. Ours are trained the same way, apart
from the picture model, but on an exact target: the pooled output must tell every attribute of the whole scene,
and the features of the last nine (padding) tokens must tell what is in the nine places of the picture.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from tokenprune.embedded import scenes
from tokenprune.embedded.training.data import BACKGROUNDS, CELLS, FIELDS, SceneDataset, batches

MAX_TOKENS = 48
WIDTH = 64
FEATURES_LAYER = -2  # the pipelines read the last layer but one


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the captions is one token."""
    corpus = scenes.texts("train", 3000)
    start, end = "<|startoftext|>", "<|endoftext|>"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    bpe.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=[start, end],
            end_of_word_suffix="</w>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_TOKENS)


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """One small CLIP text encoder with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=WIDTH,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


class SceneReader(nn.Module):
    """Linear read-outs of the text features; used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [len(values) for values in FIELDS.values()]
        self.pooled = nn.Linear(WIDTH, len(CELLS) * sum(self.sizes) + len(BACKGROUNDS))
        self.cell = nn.Linear(WIDTH, sum(self.sizes) + len(BACKGROUNDS))

    def forward(self, pooled: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits: cells from pooled [B, 9, F], background [B, G], cells from features, background [B, 9, G]."""
        split = len(CELLS) * sum(self.sizes)
        whole, per_cell = self.pooled(pooled), self.cell(features[:, -len(CELLS) :])
        cells = whole[:, :split].unflatten(1, (len(CELLS), -1))
        return cells, whole[:, split:], per_cell[..., : sum(self.sizes)], per_cell[..., sum(self.sizes) :]

    def loss(self, logits: tuple[Tensor, Tensor, Tensor, Tensor], cells: Tensor, background: Tensor) -> Tensor:
        """Mean cross entropy over both read-outs."""
        total = F.cross_entropy(logits[1], background)
        total = total + F.cross_entropy(logits[3].flatten(0, 1), background.repeat_interleave(len(CELLS)))
        for part in (logits[0], logits[2]):
            for field, field_logits in enumerate(part.split(self.sizes, dim=-1)):
                total = total + F.cross_entropy(field_logits.flatten(0, 1), cells[..., field].flatten())
        return total

    @torch.no_grad()
    def accuracy(self, logits: tuple[Tensor, Tensor, Tensor, Tensor], cells: Tensor) -> tuple[float, float]:
        """Share of occupied places read entirely right, from the pooled output and from the features."""
        filled = cells[..., 0] > 0
        rights = []
        for part in (logits[0], logits[2]):
            guesses = torch.stack([p.argmax(-1) for p in part.split(self.sizes, dim=-1)], dim=-1)
            rights.append((guesses == cells).all(-1)[filled].float().mean().item())
        return rights[0], rights[1]


def train(out: Path, steps: int, batch_size: int, seed: int, device: torch.device) -> CLIPTextModelWithProjection:
    """Train one encoder (another `seed`, another encoder) and save it with its tokenizer under `out`."""
    if (out / "model.safetensors").exists():
        return CLIPTextModelWithProjection.from_pretrained(out).to(device)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    encoder, reader = build_encoder(tokenizer).to(device), SceneReader().to(device)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    data = SceneDataset(tokenizer, size=0, start=seed << 24)
    for step, batch in enumerate(track(batches(data, batch_size, 0, steps, workers=0), f"text {seed}", total=steps)):
        cells, background = batch["cells"].to(device), batch["background"].to(device)
        output = encoder(batch["tokens"].to(device), output_hidden_states=True)
        logits = reader(output.text_embeds, output.hidden_states[FEATURES_LAYER])
        loss = reader.loss(logits, cells, background)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"text {seed} step {step}: loss {loss.item():.4f}, right {reader.accuracy(logits, cells)}", flush=True
            )
    tokenizer.save_pretrained(out / "tokenizer")
    encoder.save_pretrained(out)
    return encoder
