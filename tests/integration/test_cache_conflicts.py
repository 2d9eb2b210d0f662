"""Caches of diffusers on the same model: refused with their names, whichever came first; other hooks of it pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from diffusers import (
    DiffusionPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)
from diffusers.hooks import (
    HookRegistry,
    apply_faster_cache,
    apply_first_block_cache,
    apply_layerwise_casting,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
    apply_text_kv_cache,
)
from torch import Tensor, nn

import tokenprune
from tokenprune import CacheConflictError, CATPolicy

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
