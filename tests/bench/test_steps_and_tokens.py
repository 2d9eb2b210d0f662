"""The README's picture of what each step computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

import tokenprune
from tokenprune import DensePolicy, ListSchedule, NoisePolicy
from tokenprune.bench.studies import steps_and_tokens
from tokenprune.bench.studies.steps_and_tokens import COMPUTED, PAPER, REUSED, lane


def test_a_lane_shows_the_computed_tokens_of_each_step(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, NoisePolicy(), schedule=ListSchedule((1, 0.5, 0, 1)), trace=True) as handle:
        generate(sd3, steps=4)
        trace = handle.trace
    shown = lane(trace, gap=1)
    height, width = trace.grid
    assert shown.shape == (height, 4 * (width + 1) - 1, 3)
    for step in range(4):
        colours = shown[:, step * (width + 1) :][:, :width]
        computed = trace.computed[step, 0].view(trace.grid).numpy()
        assert (colours[computed] == COMPUTED).all()
        assert (colours[~computed] == REUSED).all()
        assert step == 3 or (shown[:, step * (width + 1) + width] == PAPER).all()


def test_it_writes_the_picture_and_says_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps_and_tokens.main(steps=6, out=tmp_path / "new" / "steps.png", model="shapes-sd3", prompt="a red circle")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"plain model: {DensePolicy().alpha:.0%} of the operations"
    assert said[1].startswith("recommended plan: 50% of the operations, picture ")
    assert said[2].startswith("CAT Pruning: ")
    colours = np.asarray(Image.open(tmp_path / "new" / "steps.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 100
