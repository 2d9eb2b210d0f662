"""What all commands have in common: what will not do ends them before they begin, with one line and exit code 2.

That is an option that cannot be read, an extra of the package that is not installed, an output that cannot be written,
and whatever the package refuses with a `TokenPruneError` on the way.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution, requires
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from tokenprune.errors import ConfigurationError, TokenPruneError, one_line

PACKAGE = "tokenprune-dit"


EXTRAS = {"tune": "tune", "app": "app"}
"""The extra that a command needs, by its name, where it is not `cli`."""


UsageError: Any = typer.BadParameter.__base__
"""What typer raises for options that it cannot read; it exports this kind of it alone."""


class Command(TyperCommand):
    """A command that checks its extra first; see the module."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options; what cannot be read names the command."""
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            check_extra(EXTRAS.get(str(ctx.info_name), "cli"))
            return super().invoke(ctx)
        except TokenPruneError as error:
            raise UsageError(one_line(error), ctx) from error

    def main(self, *args: Any, **given: Any) -> Any:
        """Run with the words of the command line."""
        return _in_one_line(super().main, *args, **given)


class Group(TyperGroup):
    """Commands under one name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of that name; for an unknown one typer names those that are like it."""
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            error.possibilities = None  # click 8.4 would name them once more
            raise

    def main(self, *args: Any, **given: Any) -> Any:
        """Run with the words of the command line."""
        return _in_one_line(super().main, *args, **{**given, "prog_name": "tokenprune"})


def run(function: Callable[..., None], module: str) -> None:
    """Run a function as the one command of a module, `python -m MODULE`."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(cls=Command)(function)
    app(prog_name=f"python -m {module}")


def _in_one_line(main: Callable[..., Any], *args: Any, standalone_mode: bool = True, **given: Any) -> Any:
    if os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"  # rich leaves out colours alone, not bold letters and bars; so it writes plain text
    if not standalone_mode:
        return main(*args, standalone_mode=False, **given)
    try:
        code = main(*args, standalone_mode=False, **given)
    except UsageError as error:
        refuse(error.ctx.command_path if error.ctx else given["prog_name"], error.format_message())
    except typer.Abort:
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def refuse(command: str, message: str) -> NoReturn:
    """End the process with the line and exit code 2."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def check_extra(extra: str) -> None:
    """Raise ConfigurationError unless all that an extra of the package brings is installed."""
    try:
        absent = [name for name in required(extra) if not is_installed(name)]
    except PackageNotFoundError as error:
        raise ConfigurationError(f"{PACKAGE} is not installed, only its source is there: pip install .") from error
    if absent:
        are = "is" if len(absent) == 1 else "are"
        raise ConfigurationError(
            f"the extra {extra!r} is needed, of which {', '.join(absent)} {are} not installed: "
            f"pip install '{PACKAGE}[{extra}]'"
        )


def required(extra: str) -> list[str]:
    """Names of the packages that an extra of this one brings, sorted; see `pyproject.toml`."""
    found: set[str] = set()
    for text in requires(PACKAGE) or ():
        requirement, _, condition = text.partition(";")
        if re.search(rf"""extra == ['"]{extra}['"]""", condition):
            name, extras = cast("re.Match[str]", re.match(r"([\w.-]+)(?:\[(.*)\])?", requirement)).groups()
            found |= (
                {name} if name != PACKAGE else {each for one in extras.split(",") for each in required(one.strip())}
            )
    return sorted(found)


def is_installed(name: str) -> bool:
    """Whether a package, by the name that `pip` knows, is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def check_known(option: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigurationError for a value of an option that is none of the known ones."""
    for value in values:
        if value not in known:
            raise ConfigurationError(f"{option}: expected one of {', '.join(known)}, got {value!r}")
