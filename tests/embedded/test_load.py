"""The pipelines that ship with the package: they load as any other, fit their size, and draw what they are told."""

from __future__ import annotations

from importlib.resources import as_file

import numpy as np
import pytest
import torch

import tokenprune
from tokenprune.embedded import scenes
from tokenprune.embedded.load import (
    EMBEDDED,
    load_shapes_flux,
    load_shapes_pixart,
    load_shapes_pixart_128,
    load_shapes_sd3,
    load_shapes_sd3_128,
)
from tokenprune.embedded.score import summary

LARGEST = 12 * 2**20  # bytes
STEPS = 12
LEAST_SCORE = dict.fromkeys(EMBEDDED, 0.75) | {"shapes-flux": 0.55}
"""Of what captions name; shapes-flux draws shapes and textures less well, as its page says."""


@pytest.fixture(scope="module", params=sorted(EMBEDDED))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_pipeline_loads_from_its_folder_and_is_small(name: str) -> None:
    with as_file(EMBEDDED[name].folder) as folder:
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < LARGEST
        missing = dict.fromkeys(EMBEDDED[name].missing)
        pipe = EMBEDDED[name].pipeline.from_pretrained(folder, dtype=torch.float32, **missing)
    assert type(pipe) is type(EMBEDDED[name].load())


def test_the_shortcuts_give_the_right_one() -> None:
    assert type(load_shapes_sd3()).__name__ == "StableDiffusion3Pipeline"
    assert load_shapes_sd3_128().transformer.config.sample_size == 2 * load_shapes_sd3().transformer.config.sample_size
    assert type(load_shapes_pixart()).__name__ == "PixArtSigmaPipeline"
    size = load_shapes_pixart().transformer.config.sample_size
    assert load_shapes_pixart_128().transformer.config.sample_size == 2 * size
    assert type(load_shapes_flux()).__name__ == "FluxPipeline"


def test_it_draws_most_of_what_a_caption_names_dense_and_by_the_plan(name: str) -> None:
    """Held-out captions; chance is about a third of the attributes."""
    embedded = EMBEDDED[name]
    pipe, captions = embedded.load(), list(scenes.captions("held-out", 4))
    pipe.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        images = pipe(
            [caption for caption, _ in captions],
            num_inference_steps=STEPS,
            guidance_scale=embedded.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(captions))],
            output_type="np",
            **embedded.arguments,
        ).images
        return (images * 255 + 0.5).clip(0, 255).astype(np.uint8)

    dense = draw()
    with tokenprune.apply(pipe, tokenprune.plan(pipe, 0.6)) as handle:
        pruned = draw()
        assert handle.report().tokens_ratio == int(0.6 * STEPS) / STEPS
    for pictures in (dense, pruned):
        assert summary(pictures, [scene for _, scene in captions])["scene_score"] > LEAST_SCORE[name]
    error = np.square(dense.astype(float) - pruned).mean()
    assert 0 < error < 255**2 * 10**-2.5  # above 25 dB
