"""What every command does with bad input."""

from __future__ import annotations

from click.testing import Result


def refused(command: str, result: Result, message: str) -> None:
    """The command ended with code 2 and one line that says this."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr
    assert result.stderr.startswith(f"tokenprune {command}: ")
    assert result.stderr.count("\n") == 1
