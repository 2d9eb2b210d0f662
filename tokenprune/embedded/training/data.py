"""Scenes as a torch data set: picture, token ids and the attributes a caption names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from tokenprune.embedded import scenes

CELLS = tuple(scenes.POSITIONS)
FIELDS: dict[str, tuple[str, ...]] = {
    "colour": ("nothing", *scenes.COLOURS),
    "shape": ("nothing", *scenes.SHAPES),
    "texture": ("nothing", *scenes.TEXTURES),
    "size": ("nothing", *scenes.SIZES),
}
BACKGROUNDS = tuple(scenes.COLOURS)


class Batch(TypedDict):
    """B scenes: `picture` [B, 3, S, S] in [-1, 1], `tokens` [B, L], `cells` [B, 9, 4], `background` [B]."""

    picture: Tensor
    tokens: Tensor
    cells: Tensor
    background: Tensor


class SceneDataset(Dataset[Batch]):
    """Scene number i of a split, at i. `size=0` leaves the picture out (for text alone)."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, size: int, split: scenes.Split = "train", start: int = 0
    ) -> None:
        self.tokenizer, self.size, self.split, self.start = tokenizer, size, split, start

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> Batch:
        scene = scenes.sample_scene(self.start + index, self.split)
        cells = torch.zeros(len(CELLS), len(FIELDS), dtype=torch.long)
        for thing in scene.things:
            cells[CELLS.index(thing.position)] = torch.tensor(
                [values.index(getattr(thing, name)) for name, values in FIELDS.items()]
            )
        picture = torch.from_numpy(scenes.render(scene, self.size)) if self.size else torch.zeros(1, 1, 3)
        return {
            "picture": picture.permute(2, 0, 1).float() / 127.5 - 1,
            "tokens": encode(self.tokenizer, [scene.caption.lower()])[0],
            "cells": cells,
            "background": torch.tensor(BACKGROUNDS.index(scene.background)),
        }


def encode(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> Tensor:
    """Token ids [B, L], padded the way the diffusers pipelines pad them."""
    arguments = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    ids: Tensor = tokenizer(captions, return_tensors="pt", **arguments).input_ids
    return ids


def batches(dataset: SceneDataset, batch_size: int, first_step: int, steps: int, workers: int) -> Iterator[Batch]:
    """Batches of steps `first_step` to `steps - 1`; a resumed run sees what an uninterrupted one would have."""
    order = range(first_step * batch_size, steps * batch_size)
    loader = DataLoader(dataset, batch_size, sampler=order, num_workers=workers, drop_last=True)
    yield from loader
