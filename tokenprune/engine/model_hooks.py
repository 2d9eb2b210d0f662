"""The hooks of the model itself and of its exit; those of blocks, attention and text layers have files of their own.

Hook functions are module-level and find their state through the module, so that a compiled block is the same
program in every layer. Order of events in one call of the model: `before_model` decides what to compute, the hooks of
blocks (block_hooks.py) reduce the image tokens, those of attention modules (attention_hooks.py) complete keys and
values, `after_exit` completes the prediction, `after_model` cleans up, also after an error.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from tokenprune.engine import attention_hooks, block_hooks, exit_hooks, text_hooks
from tokenprune.errors import UnsupportedCallError

MASKED = "_tokenprune"


ATTRIBUTES = (MASKED, attention_hooks.ATTRIBUTE, block_hooks.ATTRIBUTE, exit_hooks.EXPANDED, text_hooks.ATTRIBUTE)


def before_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the model."""
    masked = model.__dict__[MASKED]
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
    masked = model.__dict__[MASKED]
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


def forward_or_skip(masked: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stands in for the model's forward while a schedule may skip steps."""
    return masked.skipped_output() if masked.skipping else forward(*args, **kwargs)


def after_exit(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of the last projection."""
    masked = getattr(module, MASKED)
    completed: Tensor = masked.complete(output)
    return completed


@contextlib.contextmanager
def named_calls(masked: Any, announce: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
    """Stands in for a model's `cache_context`: pipelines tell by it which guidance branch the coming call is."""
    thread = threading.get_ident()
    masked.called[thread] = name
    try:
        with announce(name, *args, **kwargs):
            yield
    finally:
        masked.called.pop(thread, None)
