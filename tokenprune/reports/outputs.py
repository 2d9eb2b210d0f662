"""Files that are written at the end of long work: checked before it begins."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from tokenprune.errors import ConfigurationError


def check_output(option: str, path: Path, *suffixes: str) -> None:
    """Raise before anything is done what writing a file would raise after it; nothing is written, and no folder made.

    Args:
        option: what the user calls the path, such as a command's option without dashes.
        path: of the file; its folder may be missing.
        suffixes: those it may have; none stands for any.

    Raises:
        ConfigurationError: it cannot be written.
    """
    if suffixes and path.suffix not in suffixes:
        raise ConfigurationError(f"{option}: expected a file that ends in {', '.join(suffixes)}, got {path}")
    try:
        if path.exists():
            path.open("ab").close()
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        TemporaryFile(dir=folder).close()  # files are put in place whole, under their name
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"{option}: expected a file that can be written, got {path}: {reason}") from error
