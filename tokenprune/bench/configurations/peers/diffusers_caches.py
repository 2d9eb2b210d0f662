"""The caches of diffusers, put on `pipe.transformer` with the functions that its documentation names."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from functools import partial
from typing import Any

import torch
from torch import nn

from tokenprune.bench.configurations.peers.pipeline import at_each_generation, current_timestep, draw_once, tidied

CONTEXT = "denoiser"
"""Name of the cache context where the pipeline sets none: all its calls share one state."""


def first_block_cache(pipe: Any, steps: int, **settings: Any) -> AbstractContextManager[None]:
    """FirstBlockCache; settings of `FirstBlockCacheConfig`."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    return attached(pipe, apply_first_block_cache, FirstBlockCacheConfig(**settings))


def taylorseer(pipe: Any, steps: int, **settings: Any) -> AbstractContextManager[None]:
    """TaylorSeer with factors in single precision, as in its example; settings of `TaylorSeerCacheConfig`."""
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    config = TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32, **settings)
    return attached(pipe, apply_taylorseer_cache, config)


@contextmanager
def mag_cache(pipe: Any, steps: int, **settings: Any) -> Iterator[None]:
    """MagCache, calibrated on the pipeline first by one generation; settings of `MagCacheConfig`."""
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    printed = io.StringIO()
    calibration = MagCacheConfig(calibrate=True, num_inference_steps=steps)
    with attached(pipe, apply_mag_cache, calibration), redirect_stdout(printed):
        draw_once(pipe, steps)
    lists = [line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
    if len(lists) != 1:
        raise RuntimeError(f"MagCache: expected one list of ratios after {steps} steps, got {printed.getvalue()!r}")
    config = MagCacheConfig(mag_ratios=ast.literal_eval(lists[0]), num_inference_steps=steps, **settings)
    with attached(pipe, apply_mag_cache, config):
        yield


def pyramid_attention_broadcast(pipe: Any, steps: int, **settings: Any) -> AbstractContextManager[None]:
    """Pyramid Attention Broadcast; settings of `PyramidAttentionBroadcastConfig`."""
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    config = PyramidAttentionBroadcastConfig(current_timestep_callback=partial(current_timestep, pipe), **settings)
    return attached(pipe, apply_pyramid_attention_broadcast, config)


def faster_cache(pipe: Any, steps: int, **settings: Any) -> AbstractContextManager[None]:
    """FasterCache; settings of `FasterCacheConfig`. It leaves out no half of guidance where that is in the model."""
    from diffusers.hooks import FasterCacheConfig, apply_faster_cache

    config = FasterCacheConfig(
        current_timestep_callback=partial(current_timestep, pipe),
        attention_weight_callback=lambda _: 0.3,  # that of the example in its documentation
        _unconditional_conditional_input_kwargs_identifiers=BATCHED,
        is_guidance_distilled=bool(pipe.transformer.config.get("guidance_embeds", False)),
        **settings,
    )
    return attached(pipe, apply_faster_cache, config)


BATCHED = (
    "hidden_states",
    "encoder_hidden_states",
    "pooled_projections",
    "timestep",
    "attention_mask",
    "encoder_attention_mask",
)
"""Arguments that hold both halves of guidance: FasterCache's own, and the pooled text embeddings of SD3."""


@contextmanager
def attached(pipe: Any, apply: Callable[[nn.Module, Any], None], config: Any) -> Iterator[None]:
    """A cache of diffusers on the pipeline's transformer, emptied before each generation, for as long as this lasts.

    Raises:
        RuntimeError: it did nothing to the model.
    """
    from diffusers.hooks import HookRegistry
    from diffusers.models.cache_utils import CacheMixin

    model = pipe.transformer
    with tidied(model), ExitStack() as stack:
        registry, before = HookRegistry.check_if_exists_or_initialize(model), hook_names(model)
        stack.callback(_remove, model, before)
        apply(model, config)
        registry.invalidate_child_registries_cache()
        if hook_names(model) == before:
            raise RuntimeError(f"{apply.__name__} put no hook on {type(model).__name__}: it found nothing to cache")
        stack.enter_context(at_each_generation(pipe, registry.reset_stateful_hooks))
        if not isinstance(model, CacheMixin):
            stack.enter_context(_with_context(model))
        yield


def hook_names(model: nn.Module) -> set[str]:
    """Names of all hooks in the registries of diffusers on a model."""
    registries = [vars(module).get("_diffusers_hook") for module in model.modules()]
    return {name for registry in registries if registry is not None for name in registry.hooks}


def _remove(model: nn.Module, before: set[str]) -> None:
    """Take all hooks off but those that were there before."""
    from diffusers.hooks import HookRegistry

    registry = HookRegistry.check_if_exists_or_initialize(model)
    for name in hook_names(model) - before:
        registry.remove_hook(name, recurse=True)
    registry.invalidate_child_registries_cache()


@contextmanager
def _with_context(model: nn.Module) -> Iterator[None]:
    """A cache context around each call of a model whose pipelines set none."""
    from diffusers.models.cache_utils import CacheMixin

    context = ExitStack()

    def enter(module: nn.Module, args: Any) -> None:
        context.enter_context(CacheMixin.cache_context(module, CONTEXT))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        context.close()

    handles = (model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
