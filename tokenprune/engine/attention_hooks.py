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

from tokenprune.engine.attention_state import AttentionState
from tokenprune.errors import AttentionError
from tokenprune.ops.guidance import branches_of
from tokenprune.ops.selection import Selection

ATTRIBUTE = "_tokenprune_attention"


class AttentionMode(TorchFunctionMode):
    """Serves the attention calls of one module that its state knows of; others pass unchanged."""

    def __init__(self, state: AttentionState, frame: FrameType | None) -> None:
        super().__init__()
        self.state = state
        self.frame = frame
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `scaled_dot_product_attention`, pass everything else on."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self._alive():
            key = args[1] if len(args) > 1 else kwargs["key"]
            state = self.state.serving(self.calls, key.shape[2])
            self.calls += 1
            if state is not None:
                return attend(state, *args, **kwargs)
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
    plan = state.plan
    buffer, images = plan.buffer, plan.images
    if not plan.pruned:
        _check_full(state, key)
        if buffer.clock is not None and buffer.clock.device != key.device:
            buffer.clock = buffer.clock.to(key.device)
        buffer.record(key, value, images.span(key.shape[2]))
        if state.site.keeps_scale:
            state.scale = options.get("scale")
        if state.weigh is not None and plan.weighed is not None:
            scale = options.get("scale") or query.shape[-1] ** -0.5
            queries = query if query.shape[2] == images.count else images.rows(query)
            queries, keys = (branches_of(rows, plan.weighed)[0] for rows in (queries, images.rows(key)))
            state.weights = state.weigh(queries, keys, scale)
    else:
        fresh = plan.fresh
        if fresh is None or key.shape[0] * key.shape[2] != fresh.rows.shape[0]:
            raise AttentionError(
                f"{state.key}: expected fresh keys for the selected and text tokens, got {list(key.shape)} "
                f"[B, H, n + T, D]; the text changed its length, or the layer was skipped, or an image prompt came or "
                f"changed, since the last full step; call the handle's reset() when you change such a thing"
            )
        key, value = buffer.update(fresh, key, value)
        if attn_mask is not None:
            attn_mask = _fit_mask(state, fresh.selection, attn_mask, query.shape[2])
        if state.site.keeps_scale:
            options["scale"] = state.scale
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)


def _check_full(state: AttentionState, key: Tensor) -> None:
    length, tokens = key.shape[2], state.plan.images.count
    if length < tokens or (state.site.layout == "image" and length != tokens):
        expected = f"{tokens} image keys" + ("" if state.site.layout == "image" else " and the text keys")
        raise AttentionError(
            f"{state.site.path}: expected {expected}, got {length} keys; the module map calls its layout "
            f"{state.site.layout!r}"
        )


def _fit_mask(state: AttentionState, fresh: Selection, mask: Tensor, queries: int) -> Tensor:
    """A mask for the fresh queries and all L keys, from one made for all tokens or from one made for the fresh ones.

    Image tokens all have the same mask, unless it is made for all tokens: so the columns that a mask made for the
    fresh keys lacks are those of the first image token that it has.

    Raises:
        AttentionError: the mask fits neither.
    """
    length, computed = fresh.num_tokens, fresh.count
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.shape[-2] == length != queries:
        mask = torch.take_along_dim(mask, fresh.index[:, None, :, None], dim=-2)
    if mask.shape[-1] == computed != length:
        places = torch.arange(computed, device=mask.device).expand_as(fresh.index)
        image = torch.full_like(fresh.index[:, :1], min(state.plan.images.first(length), computed - 1))
        columns = image.expand(-1, length).scatter(1, fresh.index, places)
        mask = torch.take_along_dim(mask, columns[:, None, None, :], dim=-1)
    if mask.shape[-1] not in (1, length) or mask.shape[-2] not in (1, queries):
        raise AttentionError(
            f"{state.site.path}: expected a mask over all {length} keys, or over the {computed} fresh ones, for "
            f"{queries} queries, got {list(mask.shape)}"
        )
    return mask


def enter_attention(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of an attention module."""
    state: AttentionState = getattr(module, ATTRIBUTE)
    if not state.active:
        return
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
    if not isinstance(mode, AttentionMode):
        return
    mode.__exit__(None, None, None)
    mode.frame = None
    if not mode.calls:
        processor = type(getattr(module, "processor", None)).__name__
        raise AttentionError(
            f"{state.site.path}: {type(module).__name__} (processor {processor}) computed its attention without "
            f"torch's scaled_dot_product_attention, so its keys and values cannot be cached. Use a native back-end: "
            f"model.set_attention_backend('native'), or an AttnProcessor2_0-type processor instead of sliced, "
            f"xformers or flash ones."
        )
