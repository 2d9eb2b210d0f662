"""Counting the operators of a model's calls: each is a kernel on a GPU, and some microseconds of Python anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass
class CallKernels:
    """Operators of one call of a model.

    Attributes:
        in_blocks: within its blocks, of all of them together.
        outside: before, between and behind them.
        blocks: how many blocks ran.
    """

    in_blocks: int = 0
    outside: int = 0
    blocks: int = 0

    @property
    def per_block(self) -> float:
        """Mean over the blocks that ran; 0 where none did."""
        return self.in_blocks / self.blocks if self.blocks else 0.0


class _Counter(TorchDispatchMode):
    """Counts operators that make numbers; those that only give another view of a tensor launch nothing."""

    def __init__(self, calls: list[CallKernels]) -> None:
        super().__init__()
        self._calls = calls
        self.depth = 0
        self.in_call = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.in_call and not _is_view(func):
            call = self._calls[-1]
            if self.depth:
                call.in_blocks += 1
            else:
                call.outside += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Whether an operator's result shares the memory of an argument that it does not write to."""
    returns = func._schema.returns
    aliases = [each.alias_info for each in returns]
    views = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    return views or func.__name__.startswith(("_unsafe_view", "_reshape_alias", "detach", "empty", "new_empty"))


@contextlib.contextmanager
def counting_kernels(model: nn.Module, blocks: Sequence[str]) -> Iterator[list[CallKernels]]:
    """The operators of each call of the model within, its hooks' included.

    Args:
        model: the model.
        blocks: paths of its blocks.
    """
    calls: list[CallKernels] = []
    counter = _Counter(calls)

    def begin(module: nn.Module, args: Any) -> None:
        calls.append(CallKernels())
        counter.in_call = True

    def end(module: nn.Module, args: Any, output: Any) -> None:
        counter.in_call = False

    def enter(module: nn.Module, args: Any) -> None:
        counter.depth += 1
        calls[-1].blocks += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        counter.depth -= 1

    with contextlib.ExitStack() as stack:
        places: list[tuple[nn.Module, Any, Any]] = [(model.get_submodule(path), enter, leave) for path in blocks]
        for module, before, after in [*places, (model, begin, end)]:
            stack.callback(module.register_forward_pre_hook(before, prepend=True).remove)
            stack.callback(module.register_forward_hook(after, always_call=True).remove)
        stack.enter_context(counter)
        yield calls
