"""Loading the pipelines that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import FluxPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline

EMPTY_TEXT_TOKENS = 1
"""What to pass as `max_sequence_length`: shapes-sd3 has no T5 encoder, and one empty token says so as well as 256."""


@dataclass(frozen=True)
class Embedded:
    """A pipeline that ships with the package, trained by this project.

    Attributes:
        name: its name, and that of its folder.
        kind: name of its class in diffusers, which takes seconds to import and is left until it is needed.
        missing: components that it has none of.
        arguments: what to pass when calling it.
        guidance_scale: the guidance that the project measures with, classifier-free or learnt into the model.
        steps: the number of steps that the project measures with.
        text_tokens: what the transformer gets when it is called so.
    """

    name: str
    kind: str
    missing: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    guidance_scale: float = 4.5
    steps: int = 28
    text_tokens: int = 48

    @property
    def pipeline(self) -> Any:
        """Its class."""
        import diffusers

        return getattr(diffusers, self.kind)

    @property
    def folder(self) -> Traversable:
        """Where it lies, as `save_pretrained` left it."""
        return files("tokenprune.embedded") / "weights" / self.name

    def load(self) -> Any:
        """The pipeline in float32 on the CPU."""
        with as_file(self.folder) as folder:
            return self.pipeline.from_pretrained(folder, dtype=torch.float32, **dict.fromkeys(self.missing))


SHAPES_SD3 = Embedded(
    "shapes-sd3",
    "StableDiffusion3Pipeline",
    missing=("text_encoder_3", "tokenizer_3"),
    arguments={"max_sequence_length": EMPTY_TEXT_TOKENS},
    guidance_scale=7.0,
    text_tokens=48 + EMPTY_TEXT_TOKENS,
)

SHAPES_PIXART = Embedded(
    "shapes-pixart",
    "PixArtSigmaPipeline",
    # without these the pipeline takes 300 text tokens, and draws at the nearest of PixArt's own sizes
    arguments={"max_sequence_length": 48, "use_resolution_binning": False},
    guidance_scale=3.0,
)

EMBEDDED = {
    model.name: model
    for model in (
        SHAPES_SD3,
        replace(SHAPES_SD3, name="shapes-sd3-128"),
        SHAPES_PIXART,
        replace(SHAPES_PIXART, name="shapes-pixart-128"),
        Embedded(
            "shapes-flux",
            "FluxPipeline",
            # the pipeline's own default is the size that FLUX was trained at, in this model's latents
            arguments={"max_sequence_length": 48, "height": 64, "width": 64},
            guidance_scale=4.0,
        ),
    )
}


def load_shapes_sd3() -> StableDiffusion3Pipeline:
    """The small Stable Diffusion 3 pipeline trained by this project, in float32 on the CPU."""
    pipe: StableDiffusion3Pipeline = EMBEDDED["shapes-sd3"].load()
    return pipe


def load_shapes_sd3_128() -> StableDiffusion3Pipeline:
    """The same at 128 x 128 pixels, four times as many image tokens, in float32 on the CPU."""
    pipe: StableDiffusion3Pipeline = EMBEDDED["shapes-sd3-128"].load()
    return pipe


def load_shapes_pixart() -> PixArtSigmaPipeline:
    """The small PixArt-Sigma pipeline trained by this project, in float32 on the CPU."""
    pipe: PixArtSigmaPipeline = EMBEDDED["shapes-pixart"].load()
    return pipe


def load_shapes_pixart_128() -> PixArtSigmaPipeline:
    """The same at 128 x 128 pixels, four times as many image tokens, in float32 on the CPU."""
    pipe: PixArtSigmaPipeline = EMBEDDED["shapes-pixart-128"].load()
    return pipe


def load_shapes_flux() -> FluxPipeline:
    """The small FLUX pipeline trained by this project, with guidance learnt into it, in float32 on the CPU."""
    pipe: FluxPipeline = EMBEDDED["shapes-flux"].load()
    return pipe


def quiet() -> None:
    """No loading bars, and no notes about optional parts, from diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
