"""All commands, under one name."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from tokenprune.bench.commands import PACKAGE, Command, Group
from tokenprune.cli.app_command import app
from tokenprune.cli.bench import bench
from tokenprune.cli.calibrate import calibrate
from tokenprune.cli.demo import demo
from tokenprune.cli.figures import figures
from tokenprune.cli.generate import generate
from tokenprune.cli.inspect import inspect
from tokenprune.cli.macs import macs
from tokenprune.cli.tune import tune

APP = typer.Typer(cls=Group, no_args_is_help=False, pretty_exceptions_enable=False)


@APP.callback(invoke_without_command=True)
def tokenprune(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Token pruning for diffusion transformers."""
    if show_version:
        print(f"tokenprune {version(PACKAGE)}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (demo, app, generate, bench, figures, macs, inspect, tune, calibrate):
    APP.command(cls=Command)(command)
