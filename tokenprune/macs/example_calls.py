"""How a model's pipeline calls it, by the examples that come with its adapter.

A package of adapters may have a module `examples` whose `EXAMPLES` say that, by the name of the model's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import nn

from tokenprune.macs.rehearsal import CallPattern
from tokenprune.registry import Adapter


class Extents(Protocol):
    """Sizes of a call, in latents."""

    @property
    def frames(self) -> int:
        """Of a video; 1 of a picture."""

    @property
    def height(self) -> int:
        """Rows of latents."""

    @property
    def width(self) -> int:
        """Columns of latents."""

    @property
    def text(self) -> int:
        """T, text tokens."""


class Example(Protocol):
    """How a pipeline calls its transformer."""

    @property
    def guidance(self) -> str:
        """Classifier-free guidance: "batched" halves of one call, a call for each ("separate"), or "none"."""

    @property
    def scale(self) -> int:
        """Pixels for each row or column of latents."""

    def latents(
        self,
        model: nn.Module,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        text: int | None = None,
        batch: int = 1,
        scale: int | None = None,
    ) -> Extents:
        """Sizes of a call for pictures of so many pixels; None takes the model's own."""

    def arguments(self, model: nn.Module, latents: Any, device: str, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of such a call, by name."""


@dataclass(frozen=True)
class Wanted:
    """What the user says of the calls; None leaves it to the model's pipeline."""

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    text: int | None = None
    batch: int | None = None
    guidance: str | None = None

    def over(self, usual: Wanted) -> Wanted:
        """The same, with what it leaves open as it usually is."""
        return Wanted(**{name: getattr(usual, name) if value is None else value for name, value in vars(self).items()})

    def given(self) -> list[str]:
        """Names of what is not left open, guidance aside."""
        return [name for name, value in vars(self).items() if value is not None and name != "guidance"]


@dataclass(frozen=True)
class ResolvedCall:
    """How the model is called, in words, too; `text` is None where the arguments were given."""

    call: CallPattern
    size: str
    text: int | None
    guidance: str


def pattern_of(arguments: Mapping[str, Any], guidance: str) -> CallPattern:
    """The calls of a step, by how they are guided."""
    return CallPattern(arguments, 2 if guidance == "separate" else 1, guidance == "batched")


def example_call(model: nn.Module, adapter: Adapter, wanted: Wanted, scale: int | None = None) -> ResolvedCall | None:
    """How the model is called; None where the adapter's package has no example of it.

    Args:
        model: the transformer.
        adapter: its adapter.
        wanted: what the user says of the call.
        scale: pixels for each row or column of latents, where the pipeline's autoencoder says so.

    Raises:
        ValueError: a size that the model cannot have.
    """
    examples = _examples(f"{adapter.__module__.partition('.')[0]}.examples")
    example = next((examples[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in examples), None)
    if example is None:
        return None
    guidance = wanted.guidance or example.guidance
    batch = (wanted.batch or 1) * (2 if guidance == "batched" else 1)
    at = example.latents(model, wanted.height, wanted.width, wanted.frames, wanted.text, batch, scale)
    pixels = scale or example.scale
    frames = f", {at.frames} latent frames" if at.frames > 1 else ""
    arguments = example.arguments(model, at, "cpu", torch.float32)
    size = f"{at.height * pixels} x {at.width * pixels} pixels{frames}"
    return ResolvedCall(pattern_of(arguments, guidance), size, at.text, guidance)


def _examples(module: str) -> Mapping[str, Example]:
    """Those of a module; none where there is no such module."""
    try:
        found: Mapping[str, Example] = import_module(module).EXAMPLES
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return {}
    return found
