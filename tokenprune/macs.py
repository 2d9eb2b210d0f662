"""Counting multiply-accumulate operations, where possible without weights or arithmetic, on torch's meta device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.hooks import bare
from tokenprune.masked import MaskedModule
from tokenprune.modulemap import ModuleMap
from tokenprune.policies.sequential import SequentialPolicy
from tokenprune.report import Macs
from tokenprune.reuse import Hold
from tokenprune.run import OneGeneration
from tokenprune.schedule import Schedule, Step

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model's forward."""


class _FullThenPruned(Schedule):
    """One full step, then given numbers of tokens."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts = counts

    def fraction(self, step: Step) -> float:
        raise NotImplementedError("counts are given directly")

    def count(self, step: Step, num_tokens: int) -> int:
        return num_tokens if step.index == 0 else self._counts[step.index - 1]


class _AttentionCounter(TorchFunctionMode):
    """Adds up the operations of attention products: B H l L (D + D of the values) for every call."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self._add(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _add(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> None:
        self.macs += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def count_call(model: nn.Module, arguments: Arguments, on_meta: bool = True) -> Macs:
    """Operations of one call of the model as it stands, hooks included.

    Args:
        model: any model; its hooks run.
        arguments: what to call it with.
        on_meta: whether tensors of the arguments are on the meta device; parameters are then replaced by meta tensors
            for the call.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())} if on_meta else {}
    stand_ins = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    args, kwargs = arguments
    eager, flops, attention = (
        torch.compiler.set_stance("force_eager"),
        FlopCounterMode(display=False),
        _AttentionCounter(),
    )
    with torch.no_grad(), eager, flops, attention:
        torch.func.functional_call(model, stand_ins, args, kwargs)
    return Macs(flops.get_total_flops() / 2 - attention.macs, attention.macs)


def count_steps(
    model: nn.Module, module_map: ModuleMap, arguments: Arguments, counts: Sequence[int]
) -> tuple[Macs, dict[int, Macs]]:
    """Operations of a full call, and of calls that compute n image tokens of each image, for every n in `counts`.

    Args:
        model: the model; its hooks and wrapped forwards are left out.
        module_map: its map.
        arguments: what to call it with, tensors on the meta device unless the map says that the model reads values.
        counts: numbers of tokens n, at least 1 each.
    """
    policy, schedule = SequentialPolicy(), _FullThenPruned(counts)
    with bare(model):
        masked = MaskedModule(model, module_map, policy, schedule, Hold(), guidance="none", guidance_scale=None)
        masked.run = OneGeneration(module_map.time_rises)
        masked.install()
        on_meta = not module_map.reads_values
        full = count_call(model, arguments, on_meta)
        return full, {count: count_call(model, arguments, on_meta) for count in counts}
