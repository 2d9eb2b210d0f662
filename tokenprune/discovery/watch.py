"""Watching a call of a model: which rows of which tensors its modules get, give and attend to.

Two calls that differ in one thing are compared row by row. With `mixing=False` every attention call of as many
queries as keys gives its values instead, so that no token learns of another: then the rows that change with the
latents are the image tokens, and a change of one token reaches that token's row alone, unless something else mixes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

Place = tuple[Any, ...]
"""Where a tensor is: the argument's name (nothing for an output), then keys and numbers of what holds it."""

Inputs = Mapping[str, Any]
"""Arguments of one call of the model, by name."""

Changed = tuple[tuple[int, ...], ...]
"""For every dimension of a tensor, which of its rows differ."""


@dataclass(frozen=True)
class Digest:
    """A tensor's shape and, for each dimension, one number for each of its rows."""

    shape: tuple[int, ...]
    rows: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Digest:
        """The digest of a tensor of any type."""
        whole = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        whole = whole.detach().to(torch.float64 if whole.dtype == torch.float64 else torch.float32)
        numbers = (3.7 * whole.nan_to_num(7.0) + 1).sin()  # so that normalisation does not hide a change
        axes = range(numbers.ndim)
        if numbers.ndim == 1:
            return cls(tuple(tensor.shape), (numbers,))
        rows = (numbers.sum([other for other in axes if other != axis]) for axis in range(tensor.ndim))
        return cls(tuple(tensor.shape), tuple(rows))

    def changed(self, other: Digest) -> Changed:
        """The rows in which two tensors of one shape differ."""
        pairs = zip(self.rows, other.rows, strict=True)
        return tuple(tuple((one != two).nonzero().flatten().tolist()) for one, two in pairs)


@dataclass(frozen=True)
class Event:
    """A module is called or returns, or an attention call is made.

    Attributes:
        kind: which of these.
        path: the module's name; for attention calls the innermost running module's.
        tensors: digests of arguments, output, or query, key and value.
        running: names and call numbers of the modules that run, the innermost last.
        causal: whether an attention call is causal.
    """

    kind: Literal["call", "return", "attention"]
    path: str
    tensors: dict[Place, Digest]
    running: tuple[tuple[str, int], ...]
    causal: bool = False


@dataclass
class Watched:
    """What was seen of one call.

    Attributes:
        events: what happened, in order.
        output: of the model.
        kept: the output of the module that was asked for.
    """

    events: list[Event] = field(default_factory=list)
    output: Any = None
    kept: Any = None


class _Attention(TorchFunctionMode):
    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._watcher.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Watcher:
    """The hooks of one watched call."""

    def __init__(self, model: nn.Module, mixing: bool, keep: str | None) -> None:
        self.model, self.mixing, self.keep = model, mixing, keep
        self.seen = Watched()
        self.running: list[tuple[str, int]] = []
        self.calls = 0

    def run(self, inputs: Inputs) -> Watched:
        removable = []
        try:
            for path, module in self.model.named_modules():
                if path:
                    pre, post = self._hooks(path, module)
                    removable.append(module.register_forward_pre_hook(pre, with_kwargs=True))
                    removable.append(module.register_forward_hook(post))
            with _Attention(self):
                self.seen.output = self.model(**inputs)
        finally:
            for handle in removable:
                handle.remove()
        return self.seen

    def _hooks(self, path: str, module: nn.Module) -> tuple[Callable[..., Any], Callable[..., Any]]:
        signature = inspect.signature(module.forward)

        def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bound = signature.bind(*args, **kwargs)
            self.calls += 1
            self.running.append((path, self.calls))
            self._note("call", path, bound.arguments)

        def post(_: nn.Module, args: Any, output: Any) -> None:
            self._note("return", path, output)
            self.running.pop()
            if path == self.keep:
                self.seen.kept = tree_map(_copy, output)

        return pre, post

    def _note(self, kind: Literal["call", "return", "attention"], path: str, value: Any, causal: bool = False) -> None:
        tensors = {place: Digest.of(tensor) for place, tensor in leaves(value) if tensor.ndim}
        self.seen.events.append(Event(kind, path, tensors, tuple(self.running), causal))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        causal = bool(kwargs.get("is_causal", args[2] if len(args) > 2 else False))
        path = self.running[-1][0] if self.running else ""
        self._note("attention", path, {"query": query, "key": key, "value": value}, causal)
        if self.mixing or query.shape[-2] != key.shape[-2]:
            return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)
        return value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3) if value.ndim > 3 else value


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """All tensors in a value of tensors, tuples, lists and dictionaries, and where they are."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*place, key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from leaves(item, (*place, number))


def watch(model: nn.Module, inputs: Inputs, *, mixing: bool = True, keep: str | None = None) -> Watched:
    """Call the model with copies of the inputs and note what its modules do; afterwards it is as before.

    Args:
        model: the model.
        inputs: arguments by name.
        mixing: whether attention works; otherwise every token gets its own value.
        keep: path of a module whose output is kept.
    """
    return _Watcher(model, mixing, keep).run(copied(inputs))


def copied(inputs: Inputs) -> dict[str, Any]:
    """The inputs with all tensors copied, so that a call cannot change the caller's."""
    return tree_map(_copy, dict(inputs))


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def noised(value: Any) -> Any:
    """Every floating-point tensor in a value replaced by noise of its size; others as they are."""

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        spread = leaf.float().std().nan_to_num() if leaf.numel() > 1 else torch.zeros((), device=leaf.device)
        noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(leaf.numel()))
        return (noise.to(leaf.device) * (spread + 0.5)).to(leaf.dtype)

    return tree_map(change, value)
