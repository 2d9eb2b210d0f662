"""What commands do with input that the package refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from tokenprune.data_files import one_line
from tokenprune.errors import TokenPruneError


@contextlib.contextmanager
def refusing(command: str) -> Iterator[None]:
    """End the command with exit code 2 and one line on stderr where the package refuses what it was given."""
    try:
        yield
    except TokenPruneError as error:
        typer.echo(f"tokenprune {command}: {one_line(error)}", err=True)
        raise typer.Exit(2) from error
