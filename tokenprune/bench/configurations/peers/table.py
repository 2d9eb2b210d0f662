"""The methods of other packages that are measured, and their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.configurations.peers.diffusers_caches import (
    faster_cache,
    first_block_cache,
    mag_cache,
    pyramid_attention_broadcast,
    taylorseer,
)
from tokenprune.bench.configurations.peers.dual_block_cache import dual_block_cache


@dataclass(frozen=True)
class Peer:
    """A method of another package with settings of its own.

    Attributes:
        name: package and method, and what tells these settings from the method's others.
        source: whose method it is; the settings are added to it where a configuration shows it.
        attach: gets the pipeline, the number of steps and the settings.
        settings: everything that differs from the package's defaults, by the package's own names.
    """

    name: str
    source: str
    attach: Callable[..., AbstractContextManager[None]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def configuration(self, steps: int) -> Configuration:
        """The peer in a bench run of so many steps."""
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items()) or "defaults"
        attach = partial(self.attach, steps=steps, **self.settings)
        return Configuration(self.name, source=f"{self.source}: {settings}", attach=attach)


FIRST_BLOCK = "diffusers, github.com/chengzeyi/ParaAttention"


TAYLORSEER = "diffusers, arXiv 2503.06923"


MAG_CACHE = "diffusers, arXiv 2506.09045"


PYRAMID = "diffusers, arXiv 2408.12588"


FASTER_CACHE = "diffusers, arXiv 2410.19355"


CACHE_DIT = "cache-dit, github.com/vipshop/cache-dit"


LAYERS = r"transformer_blocks\.\d+\.(attn\d?|ff|ff_context)"
"""Names of the attention and feed-forward modules in the blocks of SD3 and PixArt, among others."""


WHOLE = {"cache_identifiers": ["proj_out"], "skip_predict_identifiers": [LAYERS]}
"""TaylorSeer's lite mode by names: the last projection is forecast, and what the blocks compute is skipped."""


EARLY = (-1, 950)
"""Timesteps of nearly the whole generation."""


PEERS = (
    Peer("diffusers FirstBlockCache, threshold 0.05", FIRST_BLOCK, first_block_cache, {"threshold": 0.05}),
    Peer("diffusers FirstBlockCache, threshold 0.1", FIRST_BLOCK, first_block_cache, {"threshold": 0.1}),
    Peer("diffusers TaylorSeer, defaults", TAYLORSEER, taylorseer),
    Peer(
        "diffusers TaylorSeer, every layer, 8 then every 2nd",
        TAYLORSEER,
        taylorseer,
        {"cache_identifiers": [LAYERS], "disable_cache_before_step": 8, "cache_interval": 2},
    ),
    Peer(
        "diffusers TaylorSeer, every layer, 8 then every 3rd",
        TAYLORSEER,
        taylorseer,
        {"cache_identifiers": [LAYERS], "disable_cache_before_step": 8, "cache_interval": 3},
    ),
    Peer(
        "diffusers TaylorSeer, lite, 8 then every 3rd",
        TAYLORSEER,
        taylorseer,
        {"use_lite_mode": True, "disable_cache_before_step": 8, "cache_interval": 3},
    ),
    Peer(
        "diffusers TaylorSeer, output, 3 then every 2nd",
        TAYLORSEER,
        taylorseer,
        {**WHOLE, "disable_cache_before_step": 3, "cache_interval": 2},
    ),
    Peer(
        "diffusers TaylorSeer, output, 8 then every 3rd",
        TAYLORSEER,
        taylorseer,
        {**WHOLE, "disable_cache_before_step": 8, "cache_interval": 3},
    ),
    Peer(
        "diffusers TaylorSeer, output, 8 then every 3rd, order 2",
        TAYLORSEER,
        taylorseer,
        {**WHOLE, "disable_cache_before_step": 8, "cache_interval": 3, "max_order": 2},
    ),
    Peer(
        "diffusers TaylorSeer, output, 4 then every 4th",
        TAYLORSEER,
        taylorseer,
        {**WHOLE, "disable_cache_before_step": 4, "cache_interval": 4},
    ),
    Peer("diffusers MagCache, one step at a time", MAG_CACHE, mag_cache, {"max_skip_steps": 1}),
    Peer("diffusers MagCache, defaults", MAG_CACHE, mag_cache),
    Peer("diffusers MagCache, threshold 0.12", MAG_CACHE, mag_cache, {"threshold": 0.12, "max_skip_steps": 5}),
    Peer(
        "diffusers PAB, every 2nd",
        PYRAMID,
        pyramid_attention_broadcast,
        {"spatial_attention_block_skip_range": 2},
    ),
    Peer(
        "diffusers PAB, every 4th, early too",
        PYRAMID,
        pyramid_attention_broadcast,
        {
            "spatial_attention_block_skip_range": 4,
            "spatial_attention_timestep_skip_range": EARLY,
            "cross_attention_block_skip_range": 4,
            "cross_attention_timestep_skip_range": EARLY,
        },
    ),
    Peer("diffusers FasterCache, defaults", FASTER_CACHE, faster_cache, {"tensor_format": "BCHW"}),
    Peer(
        "diffusers FasterCache, every 4th, early too",
        FASTER_CACHE,
        faster_cache,
        {
            "tensor_format": "BCHW",
            "spatial_attention_block_skip_range": 4,
            "spatial_attention_timestep_skip_range": EARLY,
            "unconditional_batch_timestep_skip_range": EARLY,
        },
    ),
    Peer("cache-dit DBCache, F1", CACHE_DIT, dual_block_cache, {"Fn_compute_blocks": 1}),
    Peer(
        "cache-dit DBCache, F1 W4 R0.24 MC2",
        CACHE_DIT,
        dual_block_cache,
        {
            "Fn_compute_blocks": 1,
            "max_warmup_steps": 4,
            "residual_diff_threshold": 0.24,
            "max_continuous_cached_steps": 2,
        },
    ),
    Peer(
        "cache-dit DBCache, F1, TaylorSeer",
        CACHE_DIT,
        dual_block_cache,
        {"Fn_compute_blocks": 1, "taylorseer_order": 1},
    ),
    Peer(
        "cache-dit DBCache, F1 W4 R0.24 MC2, TaylorSeer",
        CACHE_DIT,
        dual_block_cache,
        {
            "Fn_compute_blocks": 1,
            "max_warmup_steps": 4,
            "residual_diff_threshold": 0.24,
            "max_continuous_cached_steps": 2,
            "taylorseer_order": 1,
        },
    ),
    *(
        Peer(
            f"cache-dit SCM {mask_policy}, {name}",
            CACHE_DIT,
            dual_block_cache,
            {"Fn_compute_blocks": 1, "mask_policy": mask_policy, **calibrator},
        )
        for mask_policy in ("medium", "fast", "ultra")
        for name, calibrator in (("TaylorSeer", {"taylorseer_order": 1}), ("DMD", {"dmd": True}))
    ),
)
"""Each method gently, near half and near a third of the plain model's operations, where its settings reach that."""


def configurations(steps: int) -> list[Configuration]:
    """All peers, for a bench run of so many steps."""
    return [peer.configuration(steps) for peer in PEERS]
