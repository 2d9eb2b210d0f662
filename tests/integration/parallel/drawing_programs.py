"""What ranks draw with a small FLUX pipeline."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any
from unittest import mock

import small
import torch
import torch.distributed as dist
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from programs import LENGTH, Divide, make, tokens_of
from tiny import TEXT, noise
from torch import Tensor

import tokenprune
from tokenprune import SelectionPolicy


class SmallFlux(FluxPipeline):
    """A picture of 24 x 24 pixels, 36 tokens; a text gets the shorter the longer its prompt is."""

    def encode_prompt(self, prompt: str, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        length = max(2, LENGTH - 2 * len(prompt))
        return noise(1, length, TEXT), noise(1, TEXT), torch.zeros(length, 3)

    def to(self, *args: Any, **kwargs: Any) -> SmallFlux:
        return self


def make_pipeline() -> SmallFlux:
    absent = dict.fromkeys(("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"))
    transformer, _ = make("flux")
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = SmallFlux(transformer=transformer, scheduler=scheduler, vae=small.make_autoencoder(1), **absent)
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = 12
    return pipe


def pictures(
    divide: Divide, plan: SelectionPolicy | float, **options: Any
) -> tuple[Tensor, list[int], Tensor, list[int], Tensor]:
    """What a pipeline draws on this rank alone and on all ranks, and plain on all; a number is the plan's cost."""
    pipe = make_pipeline()

    def draw() -> Tensor:
        common = {"num_inference_steps": 10, "output_type": "latent", "return_dict": False, **options}
        return pipe("", generator=torch.Generator().manual_seed(0), **common)[0]

    def planned() -> tuple[Tensor, list[int]]:
        policy = tokenprune.plan(pipe, plan) if isinstance(plan, float) else plan
        with tokenprune.apply(pipe, policy) as handle:
            return draw(), tokens_of(handle)

    alone = planned()
    divide(pipe.transformer)
    return *alone, *planned(), draw()


def script(code: str, folder: Path) -> tuple[str, bool]:
    """What a script prints, and whether it wrote a picture: the small pipeline takes the place of FLUX.1's."""
    printed = io.StringIO()
    with (
        mock.patch.object(FluxPipeline, "from_pretrained", return_value=make_pipeline()),
        mock.patch.object(dist, "init_process_group"),
        mock.patch.object(dist, "destroy_process_group"),
        mock.patch.object(torch.cuda, "set_device"),
        contextlib.redirect_stdout(printed),
        contextlib.chdir(folder),
    ):
        exec(code, {"__name__": "__main__"})
    return printed.getvalue(), (folder / "circle.png").exists()
