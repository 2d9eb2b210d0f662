"""What is followed of pipelines that cannot show all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tokenprune.app.steps import StepWatch


class WithoutCallback:
    def __call__(self, prompt: str) -> None:
        raise NotImplementedError


class Packed:
    """Hands its callbacks latents that the VAE does not take as they are."""

    device = torch.device("cpu")
    image_processor = object()
    vae = SimpleNamespace(config={"latent_channels": 4})
    components: dict[str, Any] = {"vae": vae}  # noqa: RUF012

    def __call__(self, prompt: str, callback_on_step_end: object) -> None:
        raise NotImplementedError


def test_a_pipeline_without_the_callback_is_called_without_it() -> None:
    watch = StepWatch(WithoutCallback(), lambda _: None, previewed=True)
    assert watch.arguments == watch.pictures == {}
    assert watch.notes == ["steps are not followed: WithoutCallback has no callback_on_step_end"]


def test_latents_that_cannot_be_decoded_are_said_once_and_steps_go_on() -> None:
    told: list[int] = []
    pipe, given = Packed(), {"latents": torch.zeros(1, 16, 64)}
    watch = StepWatch(pipe, told.append, previewed=True)
    assert watch.arguments == {"callback_on_step_end": watch}
    for step in range(3):
        assert watch(pipe, step, 0, given) is given
    (note,) = watch.notes
    assert note.startswith("no previews of the steps: previews: expected latents [B, 4, height, width] of the Packed")
    assert (told, watch.pictures) == ([1, 2, 3], {})
    assert watch.seconds > 0
