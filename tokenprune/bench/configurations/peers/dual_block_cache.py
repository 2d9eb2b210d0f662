"""cache-dit's DBCache, alone or with its TaylorSeer calibrator, through `cache_dit.enable_cache(pipe)`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tokenprune.bench.configurations.peers.pipeline import tidied

MISSING = "cache-dit is not installed: pip install 'tokenprune-dit[peers]'"


@contextmanager
def dual_block_cache(pipe: Any, steps: int, taylorseer_order: int | None = None, **settings: Any) -> Iterator[None]:
    """DBCache; settings of `DBCacheConfig`, and the order of its TaylorSeer calibrator if it is to have one.

    Raises:
        ImportError: cache-dit is not installed.
    """
    if find_spec("cache_dit") is None:
        raise ImportError(MISSING)
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # read when it is imported; it logs to the standard output
    import cache_dit

    calibrator = None
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
