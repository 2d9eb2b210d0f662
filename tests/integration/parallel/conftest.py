"""Groups of processes for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import on_ranks


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs a program on each of so many ranks."""
    return lambda world, program, *args, **kwargs: on_ranks(world, tmp_path / "store", program, *args, **kwargs)
