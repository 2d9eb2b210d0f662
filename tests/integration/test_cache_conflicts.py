"""Caches on the same model, and hooks that mix tokens: refused with their names, whichever came first; others pass."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers.hooks
import pytest
import tiny
import torch
from diffusers import (
    DiffusionPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SmoothedEnergyGuidanceConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)
from diffusers.hooks import (
    HookRegistry,
    ModelHook,
    apply_faster_cache,
    apply_first_block_cache,
    apply_layerwise_casting,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
    apply_text_kv_cache,
)
from diffusers.hooks.context_parallel import ContextParallelGatherHook, ContextParallelSplitHook
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceHook,
    _apply_smoothed_energy_guidance_hook,
)
from torch import Tensor, nn

import tokenprune
from tokenprune import CacheConflictError, CATPolicy, HookConflictError
from tokenprune.engine.cache_conflicts import MIXING

ATTENTION = (r"transformer_blocks\.\d+\.attn1?",)
CACHES: dict[str, tuple[Callable[[nn.Module], None], tuple[str, ...]]] = {
    "FBCHeadBlockHook": (
        lambda model: apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.1)),
        ("fbc_leader_block_hook", "fbc_block_hook"),
    ),
    "TaylorSeerCacheHook": (
        lambda model: apply_taylorseer_cache(model, TaylorSeerCacheConfig(cache_identifiers=list(ATTENTION))),
        ("taylorseer_cache",),
    ),
    "MagCacheHeadHook": (
        lambda model: apply_mag_cache(model, MagCacheConfig(num_inference_steps=6, mag_ratios=torch.ones(6))),
        ("mag_cache_leader_block_hook", "mag_cache_block_hook"),
    ),
    "PyramidAttentionBroadcastHook": (
        lambda model: apply_pyramid_attention_broadcast(
            model,
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_block_identifiers=ATTENTION,
                current_timestep_callback=lambda: 500,
            ),
        ),
        ("pyramid_attention_broadcast",),
    ),
    "FasterCacheDenoiserHook": (
        lambda model: apply_faster_cache(
            model,
            FasterCacheConfig(
                spatial_attention_block_identifiers=ATTENTION,
                attention_weight_callback=lambda _: 0.5,
                current_timestep_callback=lambda: 500,
                tensor_format="BCHW",
                is_guidance_distilled=True,
            ),
        ),
        ("faster_cache_denoiser", "faster_cache_block"),
    ),
}


@pytest.fixture(params=CACHES)
def cache(request: pytest.FixtureRequest) -> str:
    return request.param


def take_off(model: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        HookRegistry.check_if_exists_or_initialize(model).remove_hook(name)


def test_the_cache_first(
    sd3: DiffusionPipeline, cache: str, marks: Callable[[nn.Module], dict[str, Any]], guest_policy: CATPolicy
) -> None:
    put_on, names = CACHES[cache]
    put_on(sd3.transformer)
    before = marks(sd3.transformer)
    message = rf"SD3Transformer2DModel: carries a cache of diffusers \(.*{cache} on .*Take the cache off first"
    with pytest.raises(CacheConflictError, match=message) as caught:
        tokenprune.apply(sd3, guest_policy)
    assert all(f"remove_hook({name!r})" in str(caught.value) for name in names)
    assert marks(sd3.transformer) == before


def test_the_cache_later(
    sd3: DiffusionPipeline, cache: str, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    put_on, names = CACHES[cache]
    plain = draw(sd3)
    with tokenprune.apply(sd3, guest_policy) as handle:
        pruned = draw(sd3)
        put_on(sd3.transformer)
        for _ in range(2):
            with pytest.raises(CacheConflictError, match=r"or remove\(\) the handle"):
                draw(sd3)
        report = handle.report()
        assert report.macs.total < report.dense_macs.total
        take_off(sd3.transformer, names)
        assert torch.equal(draw(sd3), pruned)
    assert torch.equal(draw(sd3), plain)


def test_enabled_through_the_model() -> None:
    """Models that have `enable_cache` name `disable_cache` as the way out."""
    flux = next(model for model in tiny.IMAGES if model.name == "flux")
    model = flux.make()
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(
        CacheConflictError, match=r"FBCHeadBlockHook on transformer_blocks\.0.*model\.disable_cache\(\)"
    ):
        tokenprune.apply(model, CATPolicy())
    model.disable_cache()
    tokenprune.apply(model, CATPolicy()).remove()


def test_what_keeps_nothing_passes(
    sd3: DiffusionPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    """A cache of text keys alone, and hooks that cast."""
    with tokenprune.apply(sd3, guest_policy):
        alone = draw(sd3)
    apply_text_kv_cache(sd3.transformer, TextKVCacheConfig())
    with tokenprune.apply(sd3, guest_policy):
        assert torch.equal(draw(sd3), alone)
        apply_layerwise_casting(sd3.transformer, storage_dtype=torch.float32, compute_dtype=torch.float32)
        assert torch.equal(draw(sd3), alone)


# Hooks that mix tokens -----------------------------------------------------------------------------------------------


@contextmanager
def hooked(module: nn.Module, hook: ModelHook) -> Iterator[str]:
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "theirs")
    try:
        yield r".*\(remove_hook\('theirs'\) of diffusers\.hooks\.HookRegistry\..*\(model\)\), or remove\(\) the"
    finally:
        module._diffusers_hook.remove_hook("theirs")


@contextmanager
def smoothed(model: nn.Module) -> Iterator[str]:
    """What a guider of diffusers does around one of its calls of the model in a step."""
    config = SmoothedEnergyGuidanceConfig(indices=[1], fqn="transformer_blocks")
    _apply_smoothed_energy_guidance_hook(model, config, 1.0, name="theirs")
    try:
        yield (
            r"carries a hook that blurs queries .* a pruned step has only some \(SmoothedEnergyGuidanceHook on "
            r"transformer_blocks\.1\.attn1?\.to_q, .*\(remove_hook\('theirs'\)"
        )
    finally:
        HookRegistry.check_if_exists_or_initialize(model).remove_hook("theirs")


class Blurred(SmoothedEnergyGuidanceHook):
    """One that somebody derived."""


@contextmanager
def derived(model: nn.Module) -> Iterator[str]:
    with hooked(model.transformer_blocks[0].attn2 if hasattr(model, "adaln_single") else model.pos_embed, Blurred()):
        yield r"a hook that blurs queries .*\(Blurred on .*, from .*test_cache_conflicts\)"


@contextmanager
def split(model: nn.Module) -> Iterator[str]:
    with hooked(model, ContextParallelSplitHook({}, None)) as way_out:
        yield r"a hook that gives each device a part of the sequence .*ContextParallelSplitHook on the model" + way_out


@contextmanager
def gathered(model: nn.Module) -> Iterator[str]:
    with hooked(model.proj_out, ContextParallelGatherHook([None], None)) as way_out:
        yield r"gives each device a part of the sequence .*ContextParallelGatherHook on proj_out, from dif" + way_out


@pytest.mark.parametrize("put_on", [smoothed, derived, split, gathered])
def test_hooks_that_mix_tokens(
    pipe: DiffusionPipeline, put_on: Any, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    model, plain = pipe.transformer, draw(pipe)
    with put_on(model) as message, pytest.raises(HookConflictError, match=message):
        tokenprune.apply(pipe, guest_policy)
    with tokenprune.apply(pipe, guest_policy):
        pruned = draw(pipe)
        with put_on(model) as message:
            for _ in range(2):
                with pytest.raises(HookConflictError, match=message):
                    draw(pipe)
        assert torch.equal(draw(pipe), pruned)
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("put_on", [smoothed, split])
@pytest.mark.parametrize("step", [1, 4])
def test_hooks_that_mix_tokens_from_some_step_on(
    sd3: DiffusionPipeline, put_on: Any, step: int, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    """Refused before the step that they would come in at, full or pruned, as guiders put them on for a call only."""
    with tokenprune.apply(sd3, guest_policy):
        pruned = draw(sd3)
        hook = put_on(sd3.transformer)
        done = []

        def begin(pipe: Any, index: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
            done.append(index)
            if index == step:
                hook.__enter__()
            return values

        with pytest.raises(HookConflictError, match="expected one of the two"):
            draw(sd3, callback_on_step_end=begin)
        assert done == list(range(step + 1))
        hook.__exit__(None, None, None)
        assert torch.equal(draw(sd3), pruned)


LOOKED_AT = {
    "AttentionProcessorSkipHook",
    "FeedForwardSkipHook",
    "TransformerBlockSkipHook",
    "GroupOffloadingHook",
    "LayerExecutionTrackerHook",
    "LazyPrefetchGroupOffloadingHook",
    "LayerwiseCastingHook",
    "PeftInputAutocastDisableHook",
    "FBCBlockHook",
    "MagCacheBlockHook",
    "SeaCacheBlockHook",
    "SeaCacheLeaderBlockHook",
    "SeaCachePostNormHook",
}
"""Hooks that neither keep anything nor mix tokens, or only go with one that is refused."""


def test_every_hook_of_diffusers_was_looked_at() -> None:
    """A new one in diffusers has to be said to cache, to mix tokens, or to do neither."""
    modules = [
        importlib.import_module(f"diffusers.hooks.{found.name}")
        for found in pkgutil.iter_modules(diffusers.hooks.__path__)
        if "neuron" not in found.name
    ]
    hooks = {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, ModelHook) and kind is not ModelHook
    }
    assert hooks.keys() >= MIXING.keys()
    unknown = {name for name, kind in hooks.items() if not kind._is_stateful} - MIXING.keys() - LOOKED_AT
    assert not unknown


# Another package ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed (extra 'peers')")
@pytest.mark.parametrize("first", [True, False])
def test_cache_dit(
    pipe: DiffusionPipeline,
    first: bool,
    draw: Callable[..., Tensor],
    guest_policy: CATPolicy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CACHE_DIT_LOG_LEVEL", "error")  # read when it is imported; it logs to the standard output
    import cache_dit

    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=10.0)
    message = r"forward is replaced by .*new_forward.* \(cache_dit\), .*first \(cache_dit\.disable_cache\(pipe\); if"
    plain = draw(pipe)
    if first:
        cache_dit.enable_cache(pipe, cache_config=config)
        with pytest.raises(CacheConflictError, match=message):
            tokenprune.apply(pipe, guest_policy)
        cache_dit.disable_cache(pipe)
    with tokenprune.apply(pipe, guest_policy):
        pruned = draw(pipe)
        cache_dit.enable_cache(pipe, cache_config=config)
        for _ in range(2):
            with pytest.raises(CacheConflictError, match=message):
                draw(pipe)
        cache_dit.disable_cache(pipe)
        assert torch.equal(draw(pipe), pruned)
    assert torch.equal(draw(pipe), plain)
