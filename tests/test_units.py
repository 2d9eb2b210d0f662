"""Sizes of memory in words."""

from __future__ import annotations

import pytest

from tokenprune.units import memory_in_words


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (2**19, "512.0 KiB"),
        (3 * 2**19, "1.5 MiB"),
        (2**30 - 1, "1024.0 MiB"),
        (5 * 2**28, "1.25 GiB"),
    ],
)
def test_the_unit_is_the_largest_that_fits(nbytes: int, words: str) -> None:
    assert memory_in_words(nbytes) == words
