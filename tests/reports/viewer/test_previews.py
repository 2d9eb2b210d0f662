"""Latents of chosen steps, decoded on the way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tokenprune.embedded.load import load_shapes_sd3
from tokenprune.errors import ConfigurationError
from tokenprune.reports.viewer import Previews


@pytest.fixture(scope="module")
def pipe() -> Any:
    found = load_shapes_sd3()
    found.set_progress_bar_config(disable=True)
    return found


def draw(pipe: Any, steps: int = 5, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    given = {"num_inference_steps": steps, "guidance_scale": 4.0, "max_sequence_length": 1, "generator": generator}
    return pipe("a red circle on a green background", **given, **options).images[0]


def test_chosen_steps_are_decoded_and_the_last_is_the_picture(pipe: Any) -> None:
    previews = Previews(pipe, every=2)
    plain, picture = draw(pipe), draw(pipe, callback_on_step_end=previews)
    assert picture.tobytes() == plain.tobytes()
    assert list(previews.pictures) == [0, 2, 4]
    assert previews.pictures[4][0].tobytes() == picture.tobytes()
    assert previews.pictures[0][0].tobytes() != picture.tobytes()
    draw(pipe, steps=1, callback_on_step_end=previews)
    assert list(previews.pictures) == [0]  # of the latest generation


def test_a_function_of_ones_own_decodes(pipe: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    previews = Previews(object(), decode=lambda latents: shapes.append(tuple(latents.shape)))
    draw(pipe, steps=3, callback_on_step_end=previews)
    assert shapes == [(1, 4, 32, 32)] * 3
    assert list(previews.pictures) == [0, 1, 2]


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_is_a_whole_number(every: Any, pipe: Any) -> None:
    with pytest.raises(ConfigurationError, match="every: expected a whole number of steps of at least 1, got "):
        Previews(pipe, every)


@pytest.mark.parametrize("found", [object(), SimpleNamespace(components={"vae": None}, image_processor=1)])
def test_a_pipeline_that_cannot_decode_is_refused_at_once(found: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"a pipeline with a VAE and an image processor.*pass decode="):
        Previews(found)


def test_latents_of_another_form_are_refused_at_the_first_step(pipe: Any) -> None:
    previews = Previews(pipe)
    with pytest.raises(
        ConfigurationError, match=r"latents \[B, 4, height, width\] of .*, got \[1, 64, 16\]; pass decode="
    ):
        previews(pipe, 0, None, {"latents": torch.zeros(1, 64, 16)})
