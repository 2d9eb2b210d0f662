"""Counting multiply-accumulate operations, where possible without weights or arithmetic, on torch's meta device."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tokenprune.engine.call_arguments import Given
from tokenprune.engine.on_meta import MetaWins, apart, pruned_twin
from tokenprune.modulemap import ModuleMap
from tokenprune.reports.report import Macs

Layers = Mapping[str, Macs]
"""Operations of one call by module path; the empty path stands for the whole model."""


class Computed(NamedTuple):
    """What one call computes, as far as its operations go by it.

    Attributes:
        tokens: image tokens of each image; 0 at a skipped step.
        with_text: whether the text tokens of joint sequences, too.
    """

    tokens: int
    with_text: bool = True


class _NoModules:
    """In the place of the flop counter's module tracker, which recurses for ever into modules that hold each other."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Counted(TorchFunctionMode):
    """Operations counted so far; see `counting`.

    Attention products count B H l L (D + D of the values) for every call of `scaled_dot_product_attention`, whatever
    kernel answers it; what the flop counter sees within such a call is left out of the linear operations.
    """

    def __init__(self, flops: FlopCounterMode) -> None:
        super().__init__()
        self._flops = flops
        self._flops_in_attention = 0
        self._attention = 0

    @property
    def macs(self) -> Macs:
        """Operations so far."""
        return Macs((self._flops.get_total_flops() - self._flops_in_attention) / 2, self._attention)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        before = self._flops.get_total_flops()
        self._add(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        self._flops_in_attention += self._flops.get_total_flops() - before
        return output

    def _add(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> None:
        self._attention += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


class CallCounter:
    """Sums up what is counted between the beginnings and ends of calls."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._at_beginning = Macs(0, 0)
        self.macs = Macs(0, 0)

    def begin(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        self._at_beginning = self._counted.macs

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook."""
        self.macs += self._counted.macs + self._at_beginning * -1


@contextlib.contextmanager
def counting() -> Iterator[Counted]:
    """Count the operations of whatever this thread runs within; their sum is right at any time."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter as flops, Counted(flops) as counted:
        yield counted


@contextlib.contextmanager
def by_layer(model: nn.Module, counted: Counted) -> Iterator[dict[str, Macs]]:
    """Operations within each of the model's modules, by path, of whatever is counted in the context."""
    paths = {module: path for path, module in model.named_modules()}
    begun: list[Macs] = []
    found: dict[str, Macs] = defaultdict(lambda: Macs(0, 0))

    def begin(module: nn.Module, args: Any) -> None:
        begun.append(counted.macs)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        found[paths[module]] += counted.macs + begun.pop() * -1

    with contextlib.ExitStack() as hooks:
        for module in paths:
            hooks.enter_context(module.register_forward_pre_hook(begin, prepend=True))
            hooks.enter_context(module.register_forward_hook(end, prepend=True))
        yield found


@contextlib.contextmanager
def counting_calls(model: nn.Module) -> Iterator[CallCounter]:
    """Count the operations of the model's calls, its hooks included, without compiled code, among whatever runs within.

    Hooks that are on the model before the context are counted, too; those registered within it as they come.
    """
    with torch.compiler.set_stance("force_eager"), counting() as counted:
        calls = CallCounter(counted)
        before = model.register_forward_pre_hook(calls.begin, prepend=True)
        after = model.register_forward_hook(calls.end, always_call=True)
        try:
            yield calls
        finally:
            before.remove()
            after.remove()


def count_layers(
    model: nn.Module, module_map: ModuleMap, arguments: Given, counts: Sequence[int], with_text: bool = True
) -> tuple[Layers, dict[int, Layers]]:
    """Operations of a full call, and of calls that compute n image tokens of each image, for every n in `counts`.

    A copy of the model makes the calls, so the model may run meanwhile: on the meta device, or with the model's own
    weights where the map says that it reads values. Hooks and wrapped forwards are left out.

    Args:
        model: the model.
        module_map: its map.
        arguments: what to call it with, tensors on the meta device unless the map says that the model reads values.
        counts: numbers of tokens n, at least 1 each.
        with_text: whether pruned calls compute the text tokens of joint sequences.
    """

    def count() -> tuple[Layers, dict[int, Layers]]:
        twin, given = pruned_twin(model, module_map, arguments, counts, with_text)
        full = _layers_of_call(twin, given)
        return full, {tokens: _layers_of_call(twin, given) for tokens in counts}

    return apart(count)


def _layers_of_call(model: nn.Module, arguments: Given) -> Layers:
    args, kwargs = arguments
    with torch.no_grad(), MetaWins(), counting() as counted, by_layer(model, counted) as found:
        model(*args, **kwargs)
    return {**found, "": counted.macs}


def count_steps(
    model: nn.Module, module_map: ModuleMap, arguments: Given, counts: Sequence[int], with_text: bool = True
) -> tuple[Macs, dict[int, Macs]]:
    """The whole model's operations of `count_layers`."""
    full, pruned = count_layers(model, module_map, arguments, counts, with_text)
    return full[""], {count: layers[""] for count, layers in pruned.items()}


def with_a_whole_block(full: Layers, pruned: Layers, block: str) -> Macs:
    """Operations of a pruned call in which one block computes all tokens, as if to rank them by its attention.

    So CAT Pruning's tables (arXiv 2502.00433) seem to count their baseline, AT-EDM's choice of tokens.

    Args:
        full: operations of a full call.
        pruned: of a pruned call.
        block: path of the block.
    """
    return pruned[""] + full[block] + pruned[block] * -1
