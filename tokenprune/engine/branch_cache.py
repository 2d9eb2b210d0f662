"""What is kept from step to step by one guidance branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenprune.ops.guidance import Guidance
from tokenprune.ops.static_memory import is_writable, store
from tokenprune.reuse.base import ReuseState
from tokenprune.reuse.key_value import KeyValueBuffer


class KeptOutput:
    """The last output of a module, in memory that stays where it is.

    Attributes:
        output: any tensor; None before the first.
    """

    def __init__(self) -> None:
        self.output: Tensor | None = None

    def record(self, output: Tensor) -> None:
        """Copy an output; memory is reused while shapes stay."""
        self.output = store(self.output, output)

    @property
    def writable(self) -> bool:
        """Whether the memory can be written now."""
        return is_writable(self.output)


@dataclass
class BranchCache:
    """Everything one guidance branch keeps.

    Attributes:
        guidance: how classifier-free guidance lies in the branch's batch.
        step: the last step that called the branch; -1 before the first.
        buffers: keys and values by attention path.
        constants: outputs of text-only modules by path.
        text: the text argument that `constants` belong to, and its version.
        reuse: memory of the rule for predictions that are not computed.
        prediction: the latest prediction [B, N, C].
        reference: the prediction before the last full step's [B, N, C].
        output_map: makes the model's output from tokens, where steps may be skipped.
    """

    reuse: ReuseState
    guidance: Guidance = "none"
    step: int = -1
    buffers: dict[str, KeyValueBuffer] = field(default_factory=dict)
    constants: dict[str, KeptOutput] = field(default_factory=dict)
    text: tuple[Tensor, int] | None = None
    prediction: Tensor | None = None
    reference: Tensor | None = None
    output_map: Callable[[Tensor], Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        predictions = sum(t.nbytes for t in (self.prediction, self.reference) if t is not None)
        constants = sum(kept.output.nbytes for kept in self.constants.values() if kept.output is not None)
        return predictions + constants + sum(b.nbytes for b in self.buffers.values()) + self.reuse.nbytes
