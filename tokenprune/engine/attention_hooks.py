"""Attention over cached keys and values: interception of torch's scaled_dot_product_attention.

A forward pre-hook on the attention module enters a `TorchFunctionMode`, a forward hook leaves it. Within, the
module's attention calls are seen after query/key normalisation and rotary embedding, whatever processor made them.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenprune.engine.attention_service import SDPA, AttentionService, FullAttention, PrunedAttention
from tokenprune.engine.attention_state import AttentionPlan, AttentionState
from tokenprune.engine.unseen_attention import unseen

ATTRIBUTE = "_tokenprune_attention"


class AttentionMode(TorchFunctionMode):
    """Hands the attention calls of one module to what serves them."""

    def __init__(self, service: AttentionService, frame: FrameType | None) -> None:
        super().__init__()
        self.service = service
        self.frame = frame

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `scaled_dot_product_attention`, pass everything else on."""
        kwargs = kwargs or {}
        if func is SDPA and self._alive():
            return self.service.attend(*args, **kwargs)
        if func is Tensor.unflatten and torch.compiler.is_compiling():
            # the method calls that of its base class, which torch's compiler cannot follow within a mode
            return torch.unflatten(*args, **kwargs)
        return func(*args, **kwargs)

    def _alive(self) -> bool:
        """Whether the module that entered this mode still runs; a keyboard interrupt can leave a mode behind."""
        if self.frame is None:
            return True
        caller: FrameType | None = sys._getframe(1)
        while caller is not None and caller is not self.frame:
            caller = caller.f_back
        return caller is not None


def serve(state: AttentionState, frame: FrameType | None = None) -> AttentionMode | None:
    """A mode that serves the module's attention calls in the coming call of the model; None where none is coming."""
    plan = state.plan
    if plan is None:
        return None
    return AttentionMode(PrunedAttention(state, plan) if plan.pruned else FullAttention(state, plan), frame)


def enter_attention(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of an attention module."""
    state: AttentionState = getattr(module, ATTRIBUTE)
    if not state.active:
        return
    state.ran = True
    if state.carrier is not None:
        state.carrier.arrive(state.site.path)
    state.mode = serve(state, None if torch.compiler.is_compiling() else sys._getframe(1))
    if state.mode is not None:
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
    """Forward hook of an attention module.

    Raises:
        AttentionError: a full call of it made no attention call that was seen, or what it did cannot be pruned.
    """
    state: AttentionState = getattr(module, ATTRIBUTE)
    mode, state.mode = state.mode, None
    if not isinstance(mode, AttentionMode):
        return
    mode.__exit__(None, None, None)
    mode.frame = None
    service, processor = mode.service, processor_of(module)
    if not service.made and not service.plan.pruned and not attention_is_off(service.plan, state, processor):
        raise unseen(module, state)
    service.end(output, processor)
    if state.carrier is not None:
        state.carrier.leave(state.site.path)


def processor_of(module: nn.Module) -> tuple[object, object]:
    """What computes the attention of a module of diffusers, and by which back-end."""
    processor = getattr(module, "processor", None)
    return processor, getattr(processor, "_attention_backend", None)


def attention_is_off(plan: AttentionPlan, state: AttentionState, processor: tuple[object, object]) -> bool:
    """Whether a guidance left the attention of this guidance branch out: the same processor attends in another one."""
    seen, path = plan.seen, state.site.path
    if state.trusting:
        return True
    if seen.made and not seen.calls and (torch.compiler.is_compiling() or seen.processor == processor):
        return True
    others = [branch.attention[path] for branch in plan.coming.siblings if path in branch.attention]
    return any(other.calls and other.processor == processor for other in others)
