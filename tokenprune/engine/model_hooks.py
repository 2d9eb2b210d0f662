"""The hooks of the model itself and of its exit; those of blocks, attention and text layers have files of their own.

Hook functions are module-level and find their state through the module, so that a compiled block is the same
program in every layer. Order of events in one call of the model: `before_model` decides what to compute, the hooks of
blocks (block_hooks.py) reduce the image tokens, those of attention modules (attention_hooks.py) complete keys and
values, `after_exit` completes the prediction, `after_model` cleans up, also after an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from tokenprune.engine import attention_hooks, block_hooks, exit_hooks, text_hooks
from tokenprune.errors import UnsupportedCallError

MASKED = "_tokenprune"


HANDLE = "_tokenprune_handle"
"""Where a pruned model holds its handle, so that one that was lost is found again."""


ATTRIBUTES = (
    MASKED,
    HANDLE,
    attention_hooks.ATTRIBUTE,
    block_hooks.ATTRIBUTE,
    exit_hooks.EXPANDED,
    text_hooks.ATTRIBUTE,
)


class CallHandler(Protocol):
    """What the hooks of a model tell of its calls; the model and its exit hold it under `MASKED`."""

    @property
    def model(self) -> nn.Module:
        """The model that it is for."""

    def begin_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call begins; gives the arguments that it goes on with."""

    def end_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A call went through."""

    def fail_call(self) -> None:
        """An exception stopped a call."""

    def complete(self, output: Tensor) -> Tensor:
        """The exit's output, made whole."""

    def run_or_skip(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's output."""

    def named(self, name: str) -> AbstractContextManager[None]:
        """Calls within belong to the guidance branch of this name."""


def before_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the model."""
    masked: CallHandler = model.__dict__[MASKED]
    if masked.model is not model:
        raise UnsupportedCallError(
            f"{type(model).__name__}: this is a shallow copy or a replica of a pruned model, and shares its caches; "
            f"remove() the handle first, or make a deep copy, which is a plain model"
        )
    try:
        return masked.begin_call(args, kwargs)
    except Exception:
        masked.fail_call()
        raise


def after_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the model, called on the way of an exception, too: then without output."""
    masked: CallHandler = model.__dict__[MASKED]
    if masked.model is not model:
        return
    if output is None:
        masked.fail_call()
        return
    try:
        masked.end_call(args, kwargs, output)
    except Exception:
        masked.fail_call()
        raise


def forward_or_skip(masked: CallHandler, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stands in for the model's forward while a schedule may skip steps."""
    return masked.run_or_skip(forward, args, kwargs)


def after_exit(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of the last projection."""
    masked: CallHandler = getattr(module, MASKED)
    return masked.complete(output)


@contextlib.contextmanager
def named_calls(
    masked: CallHandler, announce: Callable[..., AbstractContextManager[Any]], name: str, *args: Any, **kwargs: Any
) -> Iterator[None]:
    """Stands in for a model's `cache_context`: pipelines tell by it which guidance branch the coming call is."""
    with masked.named(name), announce(name, *args, **kwargs):
        yield
