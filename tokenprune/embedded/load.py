"""Loading the pipelines that ship with the package."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch
from diffusers import StableDiffusion3Pipeline

EMPTY_TEXT_TOKENS = 1
"""What to pass as `max_sequence_length`: shapes-sd3 has no T5 encoder, and one empty token says so as well as 256."""


def load_shapes_sd3() -> StableDiffusion3Pipeline:
    """The small Stable Diffusion 3 pipeline trained by this project, in float32 on the CPU."""
    with as_file(files("tokenprune.embedded") / "weights" / "shapes-sd3") as folder:
        pipe: StableDiffusion3Pipeline = StableDiffusion3Pipeline.from_pretrained(
            folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
        )
    return pipe
