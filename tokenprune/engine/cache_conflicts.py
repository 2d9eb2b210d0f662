"""Hooks in the manner of diffusers' on a model's modules that pruning cannot go with: caches, and what mixes tokens."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from torch import nn

from tokenprune.engine.parallelism import JOIN, REGISTRY, SPLIT
from tokenprune.errors import CacheConflictError, HookConflictError

REGISTRIES = {
    REGISTRY: "diffusers.hooks.HookRegistry.check_if_exists_or_initialize(model)",
    "_cache_dit_hook": "model._cache_dit_hook",
}
"""Attributes in which modules hold registries of such hooks, and how users get at that of the model."""


HARMLESS = {"text_kv_cache_transformer", "text_kv_cache_block"}
"""Caches of diffusers that keep what depends on the text alone; all others leave out blocks or attention."""


SPLITS = (
    "gives each device a part of the sequence of tokens, while selected tokens, their keys and their values are known "
    "by their places in the whole one"
)
MIXING = {
    "SmoothedEnergyGuidanceHook": "blurs queries over the grid of all tokens, of which a pruned step has only some",
    SPLIT: SPLITS,
    JOIN: SPLITS,
}
"""Classes of hooks that make of a token what depends on others, and why that cannot be pruned.

The others of diffusers look at one token at a time (casting), at none (offloading), or leave layers out for a guidance
branch, which has caches of its own.
"""


SKIPPING = {"AttentionProcessorSkipHook", "FeedForwardSkipHook", "TransformerBlockSkipHook"}
"""Classes of hooks by which a guider leaves out a layer for some calls; nothing is kept in its place."""


def without_guided(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """The paths but for those of layers that a guider leaves out of the call under way, and of what is in them."""
    skipping = [
        f"{path}."
        for path, module in model.named_modules()
        for attribute in REGISTRIES
        if (registry := module.__dict__.get(attribute)) is not None
        and any(type(hook).__name__ in SKIPPING for hook in registry.hooks.values())
    ]
    return [path for path in paths if not any(f"{path}.".startswith(layer) for layer in skipping)]


def refuse_hooks(model: nn.Module, served: Container[str] = ()) -> None:
    """Raise if hooks on the model's modules keep something of it from step to step, or mix its tokens.

    Offloading and casting hooks do neither and pass.

    Args:
        model: the model.
        served: classes of hooks of diffusers that pass, too, as the caller knows what to do about them.

    Raises:
        CacheConflictError: they keep something.
        HookConflictError: they mix tokens.
    """
    for attribute, registry_of_model in REGISTRIES.items():
        caches: dict[str, str] = {}
        helpers: dict[str, None] = {}
        for path, module in model.named_modules():
            registry: Any = module.__dict__.get(attribute)
            for name, hook in {} if registry is None else registry.hooks.items():
                where = f"{type(hook).__name__} on {path or 'the model'}"
                reasons = [MIXING[kind.__name__] for kind in type(hook).__mro__ if kind.__name__ in MIXING]
                passes = attribute == REGISTRY and any(kind.__name__ in served for kind in type(hook).__mro__)
                if reasons and not passes:
                    raise HookConflictError(
                        f"{type(model).__name__}: carries a hook that {reasons[0]} ({where}, from "
                        f"{type(hook).__module__}); expected one of the two. Take the hook off first "
                        f"({_removal([name], registry_of_model)}), or remove() the handle"
                    )
                if hook._is_stateful and name not in HARMLESS:
                    caches.setdefault(name, where)
                if hasattr(hook, "new_forward"):
                    helpers[name] = None
        if caches:
            way_out = "model.disable_cache()"
            if getattr(model, "_cache_config", None) is None:
                way_out = _removal({**caches, **helpers}, registry_of_model)
            raise CacheConflictError(
                f"{type(model).__name__}: carries a cache of diffusers ({', '.join(caches.values())}), which leaves "
                f"out work that pruning relies on; expected one of the two. Take the cache off first ({way_out}), or "
                f"remove() the handle"
            )


def _removal(names: Iterable[str], registry: str) -> str:
    return f"{' and '.join(f'remove_hook({name!r})' for name in names)} of {registry}"
