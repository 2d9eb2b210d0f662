"""Groups of processes for the tests of this folder."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from ranks import Ranks, on_ranks


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """Runs a program on each of so many ranks."""
    calls = itertools.count()
    return lambda world, program, *args: on_ranks(world, tmp_path / f"store {next(calls)}", program, *args)
