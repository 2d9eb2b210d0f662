"""Finding the handle of a model that is pruned, where it was lost: a notebook's cell that was run again, say."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenprune.engine.model_hooks import HANDLE, MASKED
from tokenprune.handles.handle import Handle
from tokenprune.targets import target_of


def handle_of(target: Any) -> Handle | None:
    """The handle that prunes a model, or the models of a pipeline; None where nothing does.

        tokenprune.apply(pipe, CATPolicy(alpha=0.3))
        tokenprune.handle_of(pipe).report()

    Args:
        target: the transformer, or a pipeline that holds it.

    Raises:
        UnknownModelError: it is neither.
        ValueError: several handles prune parts of the pipeline; ask for each transformer's.
    """
    found = _handles(target)
    if len(found) > 1:
        raise ValueError(
            f"expected one handle, got {len(found)}; ask handle_of(pipe.transformer), handle_of(pipe.transformer_2), "
            f"or take them all off with remove(pipe)"
        )
    return found[0] if found else None


def remove(target: Any) -> bool:
    """Give a pruned model, or the models of a pipeline, back as they were, whoever holds the handle.

    Where nothing prunes them it does nothing, so that a notebook's cell may begin with it. A handle of a pipeline with
    several transformers is taken off all of them, also where one of them is named.

    Args:
        target: the transformer, or a pipeline that holds it.

    Returns:
        Whether there was a handle.

    Raises:
        UnknownModelError: it is neither.
    """
    found = _handles(target)
    for handle in found:
        handle.remove()
    return bool(found)


def _handles(target: Any) -> list[Handle]:
    """The handles of the target's models, each once."""
    held: dict[int, Handle] = {}
    for model in target_of(target).models.values():
        handle = _handle_on(model)
        if handle is not None:
            held[id(handle)] = handle
    return list(held.values())


def _handle_on(model: nn.Module) -> Handle | None:
    handle = model.__dict__.get(HANDLE)
    if not isinstance(handle, Handle) or MASKED not in model.__dict__:
        return None
    ours = any(each is model for each in handle.transformers.values())  # not a shallow copy of it
    return handle if ours else None
