"""A request that a core serves in little time, and what of a folder must not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tokenprune.generate.painter import Request
from tokenprune.plans.presets import best_plan

STEPS = 4


@pytest.fixture(scope="session")
def request_of() -> Callable[..., Request]:
    """Requests for the embedded model; keywords replace settings."""

    def make(**other: object) -> Request:
        return Request(**{"model": "shapes-sd3", "steps": STEPS, "plan": best_plan(0.5), "device": "cpu", **other})

    return make


@pytest.fixture(scope="session")
def pictures() -> Callable[[Path], dict[str, bytes]]:
    """The pictures of a folder by name."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.png"))}

    return read
