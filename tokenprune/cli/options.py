"""Options that several commands share, and what is done with their values."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from tokenprune.embedded.load import EMBEDDED
from tokenprune.errors import ConfigurationError

PROMPT = "a large striped red circle on the left and a small blue star at the top right, on a green background"
"""What is drawn where nothing else is asked for."""


MODEL = (
    "Directory of a diffusers pipeline or transformer, shapes-sd3, -sd3-128, -pixart or -flux, random:sd3-medium or "
    "random:pixart-sigma (at their published sizes), a class of diffusers such as "
    "FluxTransformer2DModel (with its default config), owner/name on the hub, or module.path:factory, a function that "
    "gives a model or (model, arguments of a call by name)."
)
Height: TypeAlias = Annotated[int | None, typer.Option(help="Height in pixels; else the model's own.")]
Width: TypeAlias = Annotated[int | None, typer.Option(help="Width in pixels; else the model's own.")]
Size: TypeAlias = Annotated[int | None, typer.Option(help="Height and width in pixels.")]
Frames: TypeAlias = Annotated[int | None, typer.Option(help="Frames of a video; else the model's own.")]
Text: TypeAlias = Annotated[int | None, typer.Option(help="Text tokens; else what the pipeline pads or cuts to.")]
Batch: TypeAlias = Annotated[int | None, typer.Option(help="Images drawn at a time; else 1.")]
Guidance: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Both halves in one call (batched), a call for each (separate), or none; else as the pipeline."),
]
PlanFile: TypeAlias = Annotated[Path | None, typer.Option("--plan", help="A plan file.")]
Budget: TypeAlias = Annotated[
    str | None, typer.Option(help="Share of the plain model's token computations, or quality, balanced or fast.")
]
Pipeline: TypeAlias = Annotated[
    str,
    typer.Option(help=f"{', '.join(EMBEDDED)}, or a directory or hub name of a pipeline."),
]
Dtype: TypeAlias = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Device: TypeAlias = Annotated[str | None, typer.Option(help="cpu or cuda; else cuda where there is one.")]
Variant: TypeAlias = Annotated[str | None, typer.Option(help="Variant of the weights' files, such as fp16.")]
CallArgument: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="name=value for the pipeline's call; may be repeated.", show_default=False)
]
Steps: TypeAlias = Annotated[int | None, typer.Option(min=2, help="Steps of the sampler; else the model's own.")]
PromptFile: TypeAlias = Annotated[Path | None, typer.Option(help="Text file of prompts, one a line.")]
PromptsFrom: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Data set of prompts: parti-prompts, coco-2014, coco-2017 or dataset:PATH_OR_NAME#COLUMN."),
]
HeldOutPrompts: TypeAlias = Annotated[
    Path | None, typer.Option(help="Text file of prompts to report on; else the last part of --prompts.")
]
HoldOut: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Prompts to report on; else 16 captions, or half of the file.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables and notes.")]
GuidanceScale: TypeAlias = Annotated[float | None, typer.Option(help="Classifier-free guidance; else the model's own.")]


def command_line(command: str, told: Mapping[str, Any]) -> str:
    """The command with these options, as one would type it; those without a value are left out, lists are repeated."""
    given = [(name, each) for name, value in told.items() for each in (value if isinstance(value, list) else [value])]
    settings = (f"--{name} {shlex.quote(str(value))}" for name, value in given if value is not None)
    return " ".join([f"tokenprune {command}", *settings])


def at_least(**numbers: int | None) -> None:
    """Raise ConfigurationError for a number below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigurationError(f"{name}: expected at least 1, got {number}")


def runs_of(counts: tuple[int, ...]) -> str:
    """Numbers of tokens at each step, those that repeat counted: `5 x 4096, 2 x 512`."""
    return ", ".join(f"{len(list(group))} x {count}" for count, group in groupby(counts))


@contextlib.contextmanager
def refusing_values() -> Iterator[None]:
    """What the package refuses to be made with such options, as ConfigurationError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from error


def print_json(content: Any) -> None:
    """Print plain data; a number that is none, such as infinity, is an error: JSON has no word for it."""
    print(json.dumps(content, indent=2, allow_nan=False))
