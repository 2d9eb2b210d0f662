"""What every command does with bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result


def _refused(command: str, result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr
    assert result.stderr.startswith(f"tokenprune {command}: ")
    assert result.stderr.count("\n") == 1


@pytest.fixture(scope="session")
def refused() -> Callable[[str, Result, str], None]:
    """Checks that a command ended with code 2 and one line that says this."""
    return _refused


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of four prompts."""
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\na blue star\na green cross\na white ring\n")
    return path
