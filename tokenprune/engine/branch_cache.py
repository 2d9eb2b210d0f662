"""What is kept from step to step by one guidance branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.attention_calls import SeenCalls
from tokenprune.ops.guidance import Guidance
from tokenprune.ops.static_memory import is_writable, store
from tokenprune.reuse.base import Reuse
from tokenprune.reuse.key_value import BufferKey, KeyValueBuffer, Span


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


class BranchCache:
    """Everything one guidance branch keeps.

    Args:
        rule: what becomes of predictions, keys and values that are not computed.
        guidance: how classifier-free guidance lies in the branch's batch.
        dtype: what keys and values are kept in; None keeps them as they come.
        reference: the prediction that the branch's first one is relative to [B, N, C], if there is one.
        make_room: told the path of an attention module and the bytes that its keys and values will take, before they
            do, and how many modules have theirs; it refuses them by an error. None lets all pass.
        depths: share of the model's attention modules that come before each of them, by path.

    Attributes:
        guidance: as above.
        step: the last step that called the branch; -1 before the first.
        buffers: keys and values of attention modules.
        attention: the attention calls that each module made at the last full call, by path.
        order: paths of the attention modules as they ran at the last call, where keys and values lie in host memory.
        ran: paths of the blocks and attention modules that ran at the branch's first call; None before it.
        constants: outputs of text-only modules by path.
        text: the text argument that `constants` belong to, and its version.
        reuse: memory of the rule for predictions that are not computed.
        prediction: the latest prediction [B, N, C].
        reference: the prediction before the last full step's [B, N, C].
        output_map: makes the model's output from tokens, where steps may be skipped.
    """

    def __init__(
        self,
        rule: Reuse,
        guidance: Guidance = "none",
        dtype: torch.dtype | None = None,
        reference: Tensor | None = None,
        make_room: Callable[[str, int, int], None] | None = None,
        depths: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._rule, self._dtype, self._make_room, self._depths = rule, dtype, make_room, depths
        self.guidance: Guidance = guidance
        self.step = -1
        self.buffers: dict[BufferKey, KeyValueBuffer] = {}
        self.attention: dict[str, SeenCalls] = {}
        self._unpaired: set[BufferKey] = set()
        self.order: list[str] = []
        self.ran: frozenset[str] | None = None
        self.constants: dict[str, KeptOutput] = {}
        self.text: tuple[Tensor, int] | None = None
        self.reuse = rule.start(guidance)
        self.prediction: Tensor | None = None
        self.reference = reference
        self.output_map: Callable[[Tensor], Any] | None = None

    def buffer(self, key: BufferKey, paired: bool = True) -> KeyValueBuffer:
        """The keys and values kept under a key; empty where there are none yet.

        Args:
            key: their key.
            paired: whether they are those of the whole batch, in which guidance may have halves.
        """
        if key not in self.buffers or paired == (key in self._unpaired):
            self._unpaired.discard(key) if paired else self._unpaired.add(key)
            depth = self._depths.get(key.path, 0.0)
            self.buffers[key] = self._rule.start_keys(self.guidance if paired else "none", depth)
            self.buffers[key].dtype = self._dtype
        return self.buffers[key]

    def make_room(self, path: str, buffer: KeyValueBuffer, key: Tensor, value: Tensor, span: Span) -> None:
        """Ask for the memory of keys and values that are kept for the first time.

        Raises:
            CacheLimitError: there is not so much.
        """
        if self._make_room is not None and not buffer.length:
            made = sum(1 for each in self.buffers.values() if each.length)
            self._make_room(path, buffer.needed(key, value, span), made)

    def seen_calls(self, path: str) -> SeenCalls:
        """The attention calls that a module made at the last full call."""
        return self.attention.setdefault(path, SeenCalls())

    def take_memory(self, former: BranchCache) -> None:
        """Use the memory of an earlier generation's branch again, where it can be written; not what is in it."""
        self.buffers = {key: buffer for key, buffer in former.buffers.items() if buffer.writable}
        for buffer in self.buffers.values():
            buffer.restart()
        self.attention = {
            path: seen
            for path, seen in former.attention.items()
            if all(BufferKey(path, number) in self.buffers for number in seen.keys)
        }
        self._unpaired = former._unpaired
        self.order = former.order
        self.constants = {path: output for path, output in former.constants.items() if output.writable}

    @property
    def makes_buffers(self) -> bool:
        """Whether the coming call is the first full one of an attention module, and makes its buffers."""
        return any(not seen.made for seen in self.attention.values())

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held, but for those in host memory."""
        predictions = sum(t.nbytes for t in (self.prediction, self.reference) if t is not None)
        constants = sum(kept.output.nbytes for kept in self.constants.values() if kept.output is not None)
        return predictions + constants + sum(b.nbytes for b in self.buffers.values()) + self.reuse.nbytes

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory held for keys and values that go to the device when they are needed."""
        return sum(buffer.host_bytes for buffer in self.buffers.values())
