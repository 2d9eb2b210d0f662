"""cache-dit's DBCache, alone or with a calibrator, and its masks of steps, through `cache_dit.enable_cache(pipe)`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tokenprune.bench.configurations.peers.pipeline import tidied

MISSING = "cache-dit is not installed: pip install 'tokenprune-dit[peers]'"


@contextmanager
def dual_block_cache(
    pipe: Any,
    steps: int,
    taylorseer_order: int | None = None,
    dmd: bool = False,
    mask_policy: str | None = None,
    **settings: Any,
) -> Iterator[None]:
    """DBCache.

    Args:
        pipe: the pipeline.
        steps: of a generation.
        taylorseer_order: order of the TaylorSeer calibrator, if it is to have that one.
        dmd: whether it has the calibrator by dynamic mode decomposition.
        mask_policy: a mask of the package that says beforehand which steps are computed: "slow", "medium", "fast" or
            "ultra"; None decides at each step.
        settings: of `DBCacheConfig`.

    Raises:
        ImportError: cache-dit is not installed.
    """
    if find_spec("cache_dit") is None:
        raise ImportError(MISSING)
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # read when it is imported; it logs to the standard output
    import cache_dit

    if mask_policy is not None:
        mask = cache_dit.steps_mask(mask_policy=mask_policy, total_steps=steps)
        settings |= {
            "steps_computation_mask": mask,
            "steps_computation_policy": "static",
            "num_inference_steps": steps,
        }
    calibrator = cache_dit.DMDCalibratorConfig(enable_encoder_calibrator=False) if dmd else None
    if taylorseer_order is not None:
        calibrator = cache_dit.TaylorSeerCalibratorConfig(
            taylorseer_order=taylorseer_order, enable_encoder_calibrator=False
        )
    with tidied(pipe.transformer):
        try:
            cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(**settings), calibrator_config=calibrator)
            yield
        finally:
            cache_dit.disable_cache(pipe)
