"""What else happens to a model while it is pruned: other caches, copies, parts that are replaced."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenprune.errors import CacheConflictError

REGISTRY = "_diffusers_hook"


HARMLESS = {"text_kv_cache_transformer", "text_kv_cache_block"}
"""Caches of diffusers that keep what depends on the text alone; all others leave out blocks or attention."""


def refuse_caches(model: nn.Module) -> None:
    """Raise CacheConflictError if hooks of diffusers keep something of the model from step to step.

    Offloading and casting hooks keep nothing and pass.
    """
    found: dict[str, str] = {}
    helpers: dict[str, None] = {}
    for path, module in model.named_modules():
        registry: Any = module.__dict__.get(REGISTRY)
        for name, hook in {} if registry is None else registry.hooks.items():
            if hook._is_stateful and name not in HARMLESS:
                found.setdefault(name, f"{type(hook).__name__} on {path or 'the model'}")
            if hasattr(hook, "new_forward"):
                helpers[name] = None
    if not found:
        return
    way_out = "model.disable_cache()"
    if getattr(model, "_cache_config", None) is None:
        calls = " and ".join(f"remove_hook({name!r})" for name in {**found, **helpers})
        way_out = f"{calls} of diffusers.hooks.HookRegistry.check_if_exists_or_initialize(model)"
    raise CacheConflictError(
        f"{type(model).__name__}: carries a cache of diffusers ({', '.join(found.values())}), which leaves out work "
        f"that pruning relies on; expected one of the two. Take the cache off first ({way_out}), or remove() the handle"
    )
