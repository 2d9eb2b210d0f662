"""Every supported class with skipped steps: full steps are the plain model's, skipped ones are laid out alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import IMAGES, VIDEOS, Tiny
from torch import Tensor
from torch.utils._pytree import tree_leaves

import tokenprune
from tokenprune import DensePolicy, Hold, ListSchedule
from tokenprune.errors import UnsupportedCallError
from tokenprune.registry import find_adapter

FULL = (1.0, 0.0, 1.0, 0.0)
SEVERAL_OUTPUTS = {"ltx2", "kandinsky6", "minimax-h3"}
"""Picture and sound."""
TEXT_ROWS = {"ideogram4", "qwenimage-2.1", "qwenimage-2.1-edit"}
"""The output has rows of text, too, which pipelines cut off; they are 0 at skipped steps."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers' own imports
]


def draw(model: Any, inputs: dict[str, Any], rises: bool) -> list[list[Tensor]]:
    """Outputs of steps at falling noise, with the timestep argument that the model has."""
    name = find_adapter(model)(model).time
    given, found = inputs[name], []
    for step in range(len(FULL)):
        share = (step + 1) / len(FULL) if rises else 1 - step / len(FULL)
        time = given * share if given.is_floating_point() else (given * share).long()
        with torch.no_grad():
            found.append([leaf.clone() for leaf in tree_leaves(model(**{**inputs, name: time}))])
    return found


@pytest.mark.parametrize("tiny", [*IMAGES, *VIDEOS], ids=lambda tiny: tiny.name)
def test_steps_are_full_or_skipped(tiny: Tiny) -> None:
    """A held step gives the prediction of the full one before it, in the layout of the model's output."""
    model, inputs = tiny.make(), tiny.inputs()
    rises = find_adapter(model)(model).time_rises
    plain = draw(model, inputs, rises)
    for _ in range(2):
        with tokenprune.apply(model, DensePolicy(), schedule=ListSchedule(FULL), reuse=Hold()) as handle:
            if tiny.name in SEVERAL_OUTPUTS:
                with pytest.raises(UnsupportedCallError, match=r"skips=False"):
                    draw(model, inputs, rises)
                continue
            made = draw(model, inputs, rises)
            assert handle.report().tokens_ratio == 0.5
        for step, full in enumerate(FULL):
            expected = plain[step if full else step - 1]
            if tiny.name in TEXT_ROWS and not full:
                tokens = handle.report().steps[0].num_tokens
                assert all((leaf[:, :-tokens] == 0).all() for leaf in made[step])
                made[step], expected = ([leaf[:, -tokens:] for leaf in leaves] for leaves in (made[step], expected))
            assert all(torch.equal(a, b) for a, b in zip(made[step], expected, strict=True)), step
    assert all(torch.equal(a, b) for a, b in zip(draw(model, inputs, rises)[1], plain[1], strict=True))
