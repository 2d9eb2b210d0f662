"""The `tokenprune` command: one file per subcommand. Needs the extra `cli`."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    try:
        import typer
    except ModuleNotFoundError as error:
        raise SystemExit(f"tokenprune: {error.name} is missing; the command line needs the extra 'cli'") from error

    from tokenprune.cli.bench import bench
    from tokenprune.cli.demo import demo
    from tokenprune.cli.figures import figures
    from tokenprune.cli.inspect import inspect
    from tokenprune.cli.macs import macs
    from tokenprune.cli.tune import tune

    app = typer.Typer(
        help="Token pruning for diffusion transformers.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    app.command()(demo)
    app.command()(bench)
    app.command()(figures)
    app.command()(macs)
    app.command()(inspect)
    app.command()(tune)
    app()
