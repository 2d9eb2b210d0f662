"""Attention over cached keys and values: interception of torch's scaled_dot_product_attention.

A forward pre-hook on the attention module enters a `TorchFunctionMode`, a forward hook leaves it. Within, the
module's attention call is seen after query/key normalisation and rotary embedding, whatever processor made it.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenprune.cache import KeyValueBuffer
from tokenprune.errors import AttentionError
from tokenprune.modulemap import AttentionSite
from tokenprune.selection import Selection

ATTRIBUTE = "_tokenprune_attention"


class AttentionState:
    """What the hooks of one attention module share; the module holds it under `ATTRIBUTE`.

    Attributes:
        site: where the module is and how its keys lie.
        pruned: whether the coming call computes only some of the image tokens.
        rows: at a pruned call, the places of the fresh keys in the flattened buffer [B * (n + T)].
        num_tokens: N of the coming call.
        buffer: keys and values of the coming call's guidance branch.
        mode: the mode entered by the pre-hook, while the module runs.
    """

    def __init__(self, site: AttentionSite) -> None:
        self.site = site
        self.pruned = False
        self.rows: Tensor | None = None
        self.num_tokens = 0
        self.buffer = KeyValueBuffer()
        self.mode: AttentionMode | None = None

    def fresh_rows(self, selection: Selection) -> Tensor:
        """Places [B * (n + T)] of the selected image keys and of all text keys, in the order of the layout."""
        length = self.buffer.length
        text = length - self.num_tokens
        if text == 0:
            return selection.rows(length)
        first = text if self.site.layout == "text-image" else 0
        images = selection.rows(length, first).view(selection.batch_size, -1)
        starts = torch.arange(selection.batch_size, device=images.device).unsqueeze(1) * length
        texts = torch.arange(text, device=images.device) + (0 if first else self.num_tokens) + starts
        return torch.cat([texts, images] if first else [images, texts], dim=1).flatten()


class AttentionMode(TorchFunctionMode):
    """Serves the first attention call of one module; a later one (an IP-adapter's) passes unchanged."""

    def __init__(self, state: AttentionState, frame: FrameType | None) -> None:
        super().__init__()
        self.state = state
        self.frame = frame
        self.served = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `scaled_dot_product_attention`, pass everything else on."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not self.served and self._alive():
            self.served = True
            return attend(self.state, *args, **kwargs)
        return func(*args, **kwargs)

    def _alive(self) -> bool:
        """Whether the module that entered this mode still runs; a keyboard interrupt can leave a mode behind."""
        if self.frame is None:
            return True
        caller: FrameType | None = sys._getframe(1)
        while caller is not None and caller is not self.frame:
            caller = caller.f_back
        return caller is not None


def attend(
    state: AttentionState,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Attention [B, H, l, D] that records all keys at a full step and completes them from the buffer at a pruned one.

    Raises:
        AttentionError: causal attention, or keys or a mask of a length that does not fit the site.
    """
    if is_causal:
        raise AttentionError(f"{state.site.path}: causal attention cannot be pruned")
    if not state.pruned:
        _check_full(state, key)
        state.buffer.record(key, value)
    else:
        if state.rows is None or key.shape[0] * key.shape[2] != state.rows.shape[0]:
            raise AttentionError(
                f"{state.site.path}: expected fresh keys for the selected and text tokens, got {list(key.shape)} "
                f"[B, H, n + T, D]; the text changed its length, or the layer was skipped, since the last full step"
            )
        key, value = state.buffer.update(state.rows, key, value)
        if attn_mask is not None and attn_mask.shape[-1] not in (1, key.shape[2]):
            raise AttentionError(
                f"{state.site.path}: expected a mask over all {key.shape[2]} keys, got {list(attn_mask.shape)}"
            )
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)


def _check_full(state: AttentionState, key: Tensor) -> None:
    length, tokens = key.shape[2], state.num_tokens
    if length < tokens or (state.site.layout == "image" and length != tokens):
        expected = f"{tokens} image keys" + ("" if state.site.layout == "image" else " and the text keys")
        raise AttentionError(
            f"{state.site.path}: expected {expected}, got {length} keys; the module map calls its layout "
            f"{state.site.layout!r}"
        )


def enter_attention(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of an attention module."""
    state: AttentionState = getattr(module, ATTRIBUTE)
    frame = None if torch.compiler.is_compiling() else sys._getframe(1)
    state.mode = AttentionMode(state, frame)
    state.mode.__enter__()


def leave_modes(states: list[AttentionState]) -> None:
    """Leave every mode of these modules that an exception or an interrupt left on torch's stack."""
    own = {id(state.mode) for state in states if state.mode is not None}
    for state in states:
        state.mode = None
    kept: list[TorchFunctionMode] = []
    while own & {id(mode) for mode in torch.overrides._get_current_function_mode_stack()}:
        mode = torch.overrides._pop_mode()
        if id(mode) not in own:
            kept.append(mode)
    for mode in reversed(kept):
        torch.overrides._push_mode(mode)


def leave_attention(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of an attention module; raises AttentionError if no attention call was seen."""
    state: AttentionState = getattr(module, ATTRIBUTE)
    mode, state.mode = state.mode, None
    if mode is None:
        return
    mode.__exit__(None, None, None)
    mode.frame = None
    if not mode.served:
        processor = type(getattr(module, "processor", None)).__name__
        raise AttentionError(
            f"{state.site.path}: {type(module).__name__} (processor {processor}) computed its attention without "
            f"torch's scaled_dot_product_attention, so its keys and values cannot be cached. Use a native back-end: "
            f"model.set_attention_backend('native'), or an AttnProcessor2_0-type processor instead of sliced, "
            f"xformers or flash ones."
        )
