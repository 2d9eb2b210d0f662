"""`tokenprune app`: a page to try pruning on, served on this machine only."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenprune.cli import options
from tokenprune.embedded.load import EMBEDDED, quiet
from tokenprune.errors import ConfigurationError


def app(
    pipeline_dir: Annotated[
        str | None, typer.Argument(help="Directory or hub name of a diffusers pipeline; the embedded ones are there.")
    ] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    variant: options.Variant = None,
    argument: options.CallArgument = None,
    steps: options.Steps = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; else the first free one from 7860.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = False,
    as_json: options.Json = False,
) -> None:
    """Draw prompts on a page in the browser, plain and pruned, side by side; nothing leaves this machine."""
    for name, value in (("variant", variant), ("argument", argument)):
        if value and pipeline_dir is None:
            raise ConfigurationError(f"{name}: expected a PIPELINE_DIR beside it, got none")
    quiet()
    from tokenprune.app.drawing import Studio
    from tokenprune.bench.subjects.pipelines import find_subject, read_arguments

    subjects = {name: find_subject(name, dtype, device) for name in EMBEDDED}
    if pipeline_dir is not None:
        own = find_subject(pipeline_dir, dtype, device, variant, read_arguments(argument or ()))
        subjects = {pipeline_dir: own, **{name: each for name, each in subjects.items() if name != pipeline_dir}}
    studio = Studio(subjects)
    from tokenprune.app.page import make_page, serve

    try:
        serve(make_page(studio, options.PROMPT, steps), port, browser, as_json)
    except OSError as error:
        raise ConfigurationError(f"port: expected a free one: {error}") from error
    finally:
        studio.close()
