"""A limit to what all caches of a handle may hold together on the devices of their models."""

from __future__ import annotations

import re
from collections.abc import Callable

from tokenprune.errors import CacheLimitError
from tokenprune.units import UNITS, memory_in_words

HELP = (
    "draw fewer or smaller pictures in a call, keep keys and values in a smaller type with "
    'apply(..., cache_dtype=...), keep keys and values in host memory with apply(..., cache_device="cpu"), or take a '
    "plan that skips whole steps, tokenprune.plan(pipe), which keeps none"
)


def bytes_of(limit: str | int) -> int:
    """The bytes that are meant: a whole number, or a number with a unit, such as "8GiB" or "500 MB".

    Raises:
        ValueError: it is neither, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)\s*", limit) if isinstance(limit, str) else None
    nbytes = int(float(found[1]) * UNITS[found[2]]) if found else limit
    if not isinstance(nbytes, int) or nbytes < 1:
        raise ValueError(
            f"apply: cache_limit: expected bytes above 0, or a number of {', '.join(UNITS)} such as '8GiB', got "
            f"{limit!r}"
        )
    return nbytes


class CacheLimit:
    """Refuses what would make the caches hold more.

    The sizes of pictures, batches and texts are known only when the model is called, so it is there that the limit is
    reached: mostly at the first step, where the keys and values of each attention module find their memory.

    Args:
        nbytes: the limit; None is no limit.
        held: bytes that all caches hold now.
    """

    def __init__(self, nbytes: int | None, held: Callable[[], int]) -> None:
        self._nbytes, self._held = nbytes, held

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self._nbytes is not None

    def take(self, path: str, nbytes: int, left: int) -> None:
        """Make room for the keys and values of an attention module.

        Args:
            path: of the module.
            nbytes: that they take.
            left: how many further modules of this call will take memory, too.

        Raises:
            CacheLimitError: there is none.
        """
        if self._nbytes is None or (coming := self._held() + nbytes) <= self._nbytes:
            return
        raise self._error(f"{path}: ", coming + left * nbytes, "about " if left else "")

    def check(self) -> None:
        """See whether a call that went through left more than allowed: predictions are kept, too.

        Raises:
            CacheLimitError: it did.
        """
        if self._nbytes is not None and (held := self._held()) > self._nbytes:
            raise self._error("", held, "")

    def _error(self, where: str, need: int, about: str) -> CacheLimitError:
        return CacheLimitError(
            f"{where}the caches would hold {about}{memory_in_words(need)} of memory with this call, expected at most "
            f"cache_limit = {memory_in_words(self._nbytes or 0)}; {HELP}"
        )
