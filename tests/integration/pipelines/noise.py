"""A dataset that a spawned worker imports by name, without a library that takes long to import."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Noise(Dataset[Tensor]):
    """Initial latents [4, 16, 16], each of its own seed."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Tensor:
        return torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(100 + place))
