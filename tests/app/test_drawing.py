"""What is drawn for a request, and what is told of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tokenprune
from tokenprune.app.drawing import Outcome, Studio
from tokenprune.app.requests import Request
from tokenprune.bench.subjects.pipelines import find_subject
from tokenprune.errors import ConfigurationError

Make = Callable[..., Request]


def finished(studio: Studio, request: Request) -> Outcome:
    return list(studio.draw(request))[-1]


def test_the_plain_picture_comes_first_and_then_the_pruned_one_with_all_else(studio: Studio, wanted: Make) -> None:
    told: list[tuple[str, int]] = []
    first, last = studio.draw(wanted(), lambda *each: told.append(each))
    assert (first.pruned, first.report, first.page, first.psnr) == (None, None, None, None)
    assert told == [(name, step) for name in ("plain", "pruned") for step in range(5)]
    assert last.plain is first.plain
    assert last.pruned is not None
    assert last.report is not None
    assert last.page is not None
    assert (len(last.report.steps), last.report.mac_ratio) == (4, pytest.approx(0.5))
    assert last.psnr is not None
    assert 10 < last.psnr < 80
    assert last.plain.picture.shape == last.pruned.picture.shape == (64, 64, 3)
    assert last.plain.seconds > 0 < last.pruned.seconds
    (note,) = last.notes
    assert note.startswith(
        "the generation that begins has 4 steps: under PlacedSchedule(budget=0.5, steps=28), pictures of"
    )
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', last.page.read_text(), re.S)
    assert found
    data = json.loads(found[1])
    (run,) = data["runs"]
    assert (data["title"], run["name"], [*run["previews"]]) == (wanted().prompt, "speed-up", ["0", "1", "2", "3"])
    assert data["dense"] != run["picture"]


def test_the_plain_picture_is_the_plain_models(studio: Studio, wanted: Make) -> None:
    pipe = studio.subjects["shapes-sd3"].load()
    picture = pipe(
        wanted().prompt,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=1,
    ).images[0]
    for method, value in (("budget", 0.5), ("CAT", 0.3)):
        drawn = finished(studio, wanted(method=method, value=value, full_steps=2))
        assert np.array_equal(drawn.plain.picture, np.asarray(picture)), "hooks of the picture before are still there"


@pytest.mark.parametrize("where", ["embedded", "saved"])
@pytest.mark.parametrize(("method", "value"), [("speed-up", 2.0), ("budget", 0.75), ("CAT", 0.3)])
def test_the_code_draws_the_same(
    studio: Studio,
    wanted: Make,
    saved: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    method: str,
    value: float,
) -> None:
    model = saved if where == "saved" else "shapes-sd3"
    outcome = finished(studio, wanted(model=model, method=method, value=value, full_steps=2))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(outcome.code, names)  # it is what a user runs
    assert outcome.pruned is not None
    assert np.array_equal(np.asarray(names["image"]), outcome.pruned.picture)
    assert not np.array_equal(outcome.plain.picture, outcome.pruned.picture)
    assert (tmp_path / "run.html").is_file()
    assert tokenprune.handle_of(names["pipe"]) is None


def test_what_the_package_warns_of_is_told(studio: Studio, wanted: Make) -> None:
    outcome = finished(studio, wanted(method="CAT", value=0.3, full_steps=8))
    (note,) = outcome.notes
    assert note.startswith("nothing will be pruned: the generation that begins has 4 steps")
    assert outcome.psnr is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 1}, "steps: expected at least 2, got 1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"steps": None}, "steps: expected a whole number, got None"),
        ({"value": None}, "value: expected a number, got None"),
        ({"method": "x"}, "method: expected one of speed-up, budget, CAT, got 'x'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(wanted: Make, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        wanted(**given)
    assert str(caught.value).startswith(message)


def test_a_number_out_of_range_is_refused_before_anything_is_drawn(studio: Studio, wanted: Make) -> None:
    told: list[object] = []
    for given, message in (
        ({"value": 0.5}, "speedup: expected a number of at least 1, got 0.5"),
        ({"method": "CAT", "value": 2.0}, "alpha: expected a fraction of image tokens"),
        ({"model": "x"}, "model: expected one of shapes-sd3, "),
    ):
        with pytest.raises((ValueError, ConfigurationError), match=re.escape(message)):
            next(studio.draw(wanted(**given), lambda *each: told.append(each)))
    assert told == []


def test_random_weights_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected weights that were trained, got random:sd3-medium"):
        Studio({"random:sd3-medium": find_subject("random:sd3-medium", device="cpu")})
