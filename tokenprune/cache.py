"""What is kept from step to step: keys and values of every attention, constant outputs, predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenprune.reuse import ReuseState


class KeyValueBuffer:
    """Keys and values of one attention module for the whole sequence, each stored as [B, L, H, D].

    Rows are then contiguous, as attention modules project them, so a pruned step copies whole rows.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def record(self, key: Tensor, value: Tensor) -> None:
        """Store all rows of key and value [B, H, L, D]; memory is reused while shapes stay."""
        self.key = _store(self.key, key.transpose(1, 2))
        self.value = _store(self.value, value.transpose(1, 2))

    def update(self, rows: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite rows with fresh ones and return the whole key and value as [B, H, L, D].

        Args:
            rows: places [B * l] in the flattened [B * L] sequences.
            key: fresh keys [B, H, l, D].
            value: fresh values [B, H, l, D].
        """
        if self.key is None or self.value is None:
            raise RuntimeError("update() before record(): a generation starts with a full step")
        for buffer, fresh in ((self.key, key), (self.value, value)):
            buffer.flatten(0, 1).index_copy_(0, rows, fresh.transpose(1, 2).flatten(0, 1).to(buffer.dtype))
        return self.key.transpose(1, 2), self.value.transpose(1, 2)

    @property
    def writable(self) -> bool:
        """Whether the memory can be written now; what inference mode made cannot be outside of it."""
        return self.key is None or torch.is_inference_mode_enabled() or not self.key.is_inference()

    @property
    def length(self) -> int:
        """L, the number of keys; 0 before the first record."""
        return 0 if self.key is None else self.key.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        return sum(t.nbytes for t in (self.key, self.value) if t is not None)


def _store(buffer: Tensor | None, fresh: Tensor) -> Tensor:
    if buffer is None or buffer.shape != fresh.shape or buffer.dtype != fresh.dtype or buffer.device != fresh.device:
        return fresh.contiguous().clone()
    return buffer.copy_(fresh)


@dataclass
class BranchCache:
    """Everything one guidance branch keeps.

    Attributes:
        buffers: keys and values by attention path.
        constants: outputs of text-only modules by path.
        text: the text argument that `constants` belong to, and its version.
        reuse: memory of the rule for predictions that are not computed.
        prediction: the latest prediction [B, N, C].
        reference: the prediction before the last full step's [B, N, C].
        output_map: makes the model's output from tokens, where steps may be skipped.
    """

    reuse: ReuseState
    buffers: dict[str, KeyValueBuffer] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    text: tuple[Tensor, int] | None = None
    prediction: Tensor | None = None
    reference: Tensor | None = None
    output_map: Callable[[Tensor], Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        predictions = sum(t.nbytes for t in (self.prediction, self.reference) if t is not None)
        constants = sum(t.nbytes for t in self.constants.values())
        return predictions + constants + sum(b.nbytes for b in self.buffers.values()) + self.reuse.nbytes
