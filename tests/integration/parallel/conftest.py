"""Groups of processes for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import Ranks, on_ranks


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """Runs a program on each of so many ranks."""
    return lambda world, program, *args: on_ranks(world, tmp_path / "store", program, *args)
