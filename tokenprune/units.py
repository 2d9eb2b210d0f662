"""Sizes of memory in words."""

from __future__ import annotations

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
"""Bytes, by what they are called."""


def memory_in_words(nbytes: float) -> str:
    """A number of bytes in the largest unit of which there is one: "1.25 GiB", "9.3 MiB", "512.0 KiB", "96 bytes"."""
    if nbytes >= UNITS["GiB"]:
        return f"{nbytes / UNITS['GiB']:.2f} GiB"
    for name in ("MiB", "KiB"):
        if nbytes >= UNITS[name]:
            return f"{nbytes / UNITS[name]:.1f} {name}"
    return f"{nbytes:.0f} bytes"
