"""Blocks that give what they gave at the last full call in shape only, without computing anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Form:
    """A tensor without its values."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def zeros(self) -> Tensor:
        """One of this form."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


class BlockOutputs:
    """The forms of what blocks gave, call by call: `watch` a call of the model, then let them `stand_in` in another."""

    def __init__(self) -> None:
        self._forms: dict[nn.Module, list[Any]] = {}
        self._handles: list[RemovableHandle] = []

    def watch(self, blocks: Iterable[nn.Module]) -> None:
        """Note the outputs of these blocks from now on."""
        self.leave()
        for block in blocks:
            self._forms[block] = []
            self._handles.append(block.register_forward_hook(self._note))

    def leave(self) -> None:
        """Watch no more, and forget."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forms.clear()

    @contextlib.contextmanager
    def stand_in(self) -> Iterator[None]:
        """Within, the blocks that were watched give zeros of the noted forms, in the noted order."""
        forms = {block: list(noted) for block, noted in self._forms.items()}
        for handle in self._handles:
            handle.remove()
        own = {block: block.__dict__.get("forward") for block in forms}
        try:
            for block, noted in forms.items():
                block.__dict__["forward"] = _giving(noted)
            yield
        finally:
            for block, forward in own.items():
                if forward is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.__dict__["forward"] = forward

    def _note(self, block: nn.Module, args: Any, output: Any) -> None:
        self._forms[block].append(tree_map_only(Tensor, lambda t: Form(t.shape, t.dtype, t.device), output))


def _giving(forms: list[Any]) -> Any:
    """A forward that gives zeros of these forms, one after the other, and of the last one from then on."""
    calls = iter(forms)
    last = forms[-1] if forms else None

    def forward(*args: Any, **kwargs: Any) -> Any:
        return tree_map_only(Form, Form.zeros, next(calls, last))

    return forward
