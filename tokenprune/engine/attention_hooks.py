"""Attention over cached keys and values: interception of torch's scaled_dot_product_attention.

A forward pre-hook on the attention module enters a `TorchFunctionMode`, a forward hook leaves it. Within, the
module's attention call is seen after query/key normalisation and rotary embedding, whatever processor made it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenprune.engine.rows import Rows
from tokenprune.errors import AttentionError
from tokenprune.modulemap import AttentionSite
from tokenprune.ops.selection import Selection
from tokenprune.reuse.key_value import FreshKeys, KeyValueBuffer, Span

ATTRIBUTE = "_tokenprune_attention"


SECOND = "#second"
"""What the path of a module's second attention call ends with."""


class AttentionState:
    """What the hooks of one attention module share; the module holds it under `ATTRIBUTE`.

    Attributes:
        site: where the module is and how its keys lie.
        image: the place in the batch of the only image it serves, where the site attends to each by itself.
        path: what its keys and values are kept under: the module's name, of one image `name#place`.
        pruned: whether the coming call computes only some of the image tokens.
        fresh: at a pruned call, which of the keys it computes: selected image tokens and all text tokens.
        num_tokens: N of the coming call.
        starts: where image tokens begin in each sequence [B], if that differs.
        scale: the last full call's, where the site keeps it.
        images: states of single images, where the site attends to each in a call of its own.
        second: the state of the module's second attention call, where that may see image keys.
        apart: of a second call, whether the last full one saw no image keys, so that it passes unchanged.
        buffer: keys and values of the coming call's guidance branch.
        mode: the mode entered by the pre-hook, while the module runs.
        weigh: at a full call whose attention the policy wants to know, its `weigh_attention`.
        weights: what that gave [G, N].
    """

    def __init__(self, site: AttentionSite, image: int | None = None) -> None:
        self.site = site
        self.image = image
        self.path = site.path if image is None else f"{site.path}#{image}"
        self.pruned = False
        self.fresh: FreshKeys | None = None
        self.scale: float | None = None
        self.images: list[AttentionState] = []
        self.second: AttentionState | None = None
        if site.second is not None:
            self.second = AttentionState(replace(site, layout=site.second, second=None))
            self.second.path = site.path + SECOND
        self.apart = False
        self.num_tokens = 0
        self.starts: Tensor | None = None
        self.buffer = KeyValueBuffer()
        self.mode: AttentionMode | None = None
        self.weigh: Callable[[Tensor, Tensor, float], Tensor] | None = None
        self.weights: Tensor | None = None

    def first(self, length: int) -> int:
        """Where image tokens begin among so many queries or keys; the last place where they do, if it differs."""
        return length - self.num_tokens if self.site.layout == "text-image" else 0

    def span(self, length: int) -> Span:
        """Where image tokens lie among so many queries or keys; anywhere, if it differs."""
        return (self.first(length), self.num_tokens) if self.starts is None else (0, length)

    def of_images(self, sequence: Tensor) -> Tensor:
        """The image tokens' rows [B, H, N, D] of a full sequence of queries or keys."""
        if self.starts is None:
            return sequence.narrow(2, self.first(sequence.shape[2]), self.num_tokens)
        starts = self.starts.to(sequence.device)[:, None, None, None]
        places = torch.arange(self.num_tokens, device=sequence.device)[:, None]
        return torch.take_along_dim(sequence, starts + places, dim=2)

    def of_batch(self, batch: int) -> list[AttentionState]:
        """The states that serve the coming call: this one, or one for each image."""
        if not self.site.per_image:
            return [self] if self.second is None else [self, self.second]
        for place in range(len(self.images), batch):
            self.images.append(AttentionState(self.site, place))
            self.images[place].weigh = self.weigh
        return self.images[:batch]

    def serving(self, call: int, keys: int) -> AttentionState | None:
        """What serves the module's next attention call, to so many keys; None lets it pass (an IP-adapter's)."""
        if self.site.per_image:
            return self.images[call] if call < len(self.images) else None
        if call == 1 and self.second is not None:
            if not self.second.pruned:
                self.second.apart = keys < self.second.num_tokens
            return None if self.second.apart else self.second
        return self if call == 0 else None

    def forget(self) -> None:
        """Let go of all tensors."""
        self.buffer, self.fresh, self.starts, self.images = KeyValueBuffer(), None, None, []
        if self.second is not None:
            self.second.forget()


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
    if not state.pruned:
        _check_full(state, key)
        if state.buffer.clock is not None and state.buffer.clock.device != key.device:
            state.buffer.clock = state.buffer.clock.to(key.device)
        state.buffer.record(key, value, state.span(key.shape[2]))
        if state.site.keeps_scale:
            state.scale = options.get("scale")
        if state.weigh is not None:
            scale = options.get("scale") or query.shape[-1] ** -0.5
            images = query if query.shape[2] == state.num_tokens else state.of_images(query)
            state.weights = state.weigh(images, state.of_images(key), scale)
    else:
        fresh = state.fresh
        if fresh is None or key.shape[0] * key.shape[2] != fresh.rows.shape[0]:
            raise AttentionError(
                f"{state.path}: expected fresh keys for the selected and text tokens, got {list(key.shape)} "
                f"[B, H, n + T, D]; the text changed its length, or the layer was skipped, or an image prompt came or "
                f"changed, since the last full step; call the handle's reset() when you change such a thing"
            )
        key, value = state.buffer.update(fresh, key, value)
        if attn_mask is not None:
            attn_mask = _fit_mask(state, fresh.selection, attn_mask, query.shape[2])
        if state.site.keeps_scale:
            options["scale"] = state.scale
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)


def _check_full(state: AttentionState, key: Tensor) -> None:
    length, tokens = key.shape[2], state.num_tokens
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
        image = torch.full_like(fresh.index[:, :1], min(state.first(length), computed - 1))
        columns = image.expand(-1, length).scatter(1, fresh.index, places)
        mask = torch.take_along_dim(mask, columns[:, None, None, :], dim=-1)
    if mask.shape[-1] not in (1, length) or mask.shape[-2] not in (1, queries):
        raise AttentionError(
            f"{state.site.path}: expected a mask over all {length} keys, or over the {computed} fresh ones, for "
            f"{queries} queries, got {list(mask.shape)}"
        )
    return mask


def prepare(
    states: Iterable[AttentionState],
    buffers: Mapping[str, KeyValueBuffer],
    rows: Rows | None,
    tokens: int,
    clock: Tensor,
    starts: Tensor | None = None,
) -> None:
    """Tell all attention modules what the coming call computes.

    Args:
        states: of the modules, or of the images in them.
        buffers: the guidance branch's keys and values, by path.
        rows: at a pruned call, which rows are computed; None at a full one.
        tokens: N, all image tokens.
        clock: the timestep, a tensor [].
        starts: where image tokens begin in each joint sequence [B], if that differs.
    """
    found: dict[tuple[str, int, int | None, torch.device], FreshKeys] = {}
    clocks: dict[torch.device, Tensor] = {clock.device: clock}
    for state in states:
        layout = state.site.layout
        state.buffer = buffers[state.path]
        device = clock.device if state.buffer.key is None else state.buffer.key.device
        if device not in clocks:
            clocks[device] = clock.to(device)
        state.buffer.clock = clocks[device]
        state.num_tokens = tokens
        state.starts = None if layout == "image" else starts
        state.weights = state.fresh = None
        state.pruned = rows is not None
        length = state.buffer.length
        if rows is not None and length:  # 0: a layer that this branch skips
            key = (layout, length, state.image, device)
            if key not in found:
                fresh = rows.sequence(layout, length, state.image).to(device)
                found[key] = FreshKeys.of(fresh, state.span(length), rows.static.part(key))
            state.fresh = found[key]


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
    if not mode.calls:
        processor = type(getattr(module, "processor", None)).__name__
        raise AttentionError(
            f"{state.site.path}: {type(module).__name__} (processor {processor}) computed its attention without "
            f"torch's scaled_dot_product_attention, so its keys and values cannot be cached. Use a native back-end: "
            f"model.set_attention_backend('native'), or an AttnProcessor2_0-type processor instead of sliced, "
            f"xformers or flash ones."
        )
