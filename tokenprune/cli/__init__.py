"""The `tokenprune` command: one file for each command, with its options and what it shows on the screen.

Nothing is measured here: that is done in `bench`. `app` puts the commands together; modules that take long to import
are imported within the commands, so that `--help` is quick. Needs the extra `cli`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        from tokenprune.cli.app import APP
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f"tokenprune: {error.name} is not installed: pip install 'tokenprune-dit[cli]'", file=sys.stderr)
        sys.exit(2)
    APP()
