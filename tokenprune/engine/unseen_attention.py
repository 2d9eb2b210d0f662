"""Why no attention call of a module was seen, and what to do about it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from tokenprune.engine.attention_service import SDPA
from tokenprune.engine.attention_state import AttentionState
from tokenprune.errors import AttentionError


def unseen(module: nn.Module, state: AttentionState) -> AttentionError:
    """The error of a module whose full call made no attention call of torch."""
    processor: Any = getattr(module, "processor", None)
    by = "" if processor is None else f" (processor {type(processor).__name__})"
    return AttentionError(
        f"{state.site.path}: {type(module).__name__}{by} computed its attention without torch's "
        f"scaled_dot_product_attention, so its keys and values cannot be cached. {_advice(module, processor, state)}. "
        f"(Guidance that leaves attention out, such as PAG or STG, is told from that by an earlier call of the model "
        f"in the same step, which does attend)"
    )


def _advice(module: nn.Module, processor: Any, state: AttentionState) -> str:
    patch: Any = F.scaled_dot_product_attention
    if patch is not SDPA:
        name = f"{getattr(patch, '__module__', '?')}.{getattr(patch, '__qualname__', type(patch).__name__)}"
        return (
            f"torch.nn.functional.scaled_dot_product_attention was replaced by {name}: put torch's own back while the "
            f"model is pruned"
        )
    if any(isinstance(part, nn.MultiheadAttention) for part in module.modules()):
        return (
            "torch.nn.MultiheadAttention attends within one function of torch: write the module with three linear "
            "layers and torch.nn.functional.scaled_dot_product_attention"
        )
    if hasattr(processor, "_attention_backend") and hasattr(state.owner, "set_attention_backend"):
        return "Use a native back-end: model.set_attention_backend('native')"
    if processor is not None and hasattr(state.owner, "set_attn_processor"):
        return (
            "Use a processor that calls it, such as diffusers' AttnProcessor2_0, through model.set_attn_processor(), "
            "in place of plain, sliced, xformers or flash ones"
        )
    return "Let the module call torch.nn.functional.scaled_dot_product_attention"
