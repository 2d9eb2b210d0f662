"""A pipeline that draws jobs: seeds, plans, what fails, and what is told of each picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenprune
from tokenprune import CATPolicy, Plan
from tokenprune.embedded.load import load_shapes_sd3
from tokenprune.errors import UnsupportedCallError
from tokenprune.generate import painter
from tokenprune.generate.folder import Folder
from tokenprune.generate.jobs import Job, jobs_of
from tokenprune.generate.painter import FailuresError, Outcome, Painter, Request

JOBS = jobs_of(["a red circle", "a blue star", "a green cross"], 7)


def drawn(request: Request, folder: Path, *batches: tuple[Job, ...]) -> Painter:
    found = Painter(request, Folder(folder))
    for batch in batches:
        assert found.draw(batch) == [Outcome(job.name) for job in batch]
    return found


def report(folder: Path, job: Job) -> dict[str, Any]:
    return json.loads((folder / f"{job.name}.json").read_text())


def failing(prompt: str, error: Exception, real: Callable[..., Any] = painter.call) -> Callable[..., Any]:
    def call(pipe: Any, prompts: list[str], *rest: Any) -> Any:
        if any(prompt in each for each in prompts):
            raise error
        return real(pipe, prompts, *rest)

    return call


@pytest.mark.parametrize("planned", [True, False])
def test_a_picture_is_that_of_its_prompt_seed_and_plan(
    planned: bool, tmp_path: Path, request_of: Callable[..., Request]
) -> None:
    import torch

    request = request_of(guidance_scale=5.0) if planned else request_of(guidance_scale=5.0, plan=None)
    drawn(request, tmp_path, JOBS[1:2])
    pipe: Any = load_shapes_sd3()
    pipe.set_progress_bar_config(disable=True)
    if planned:
        tokenprune.apply(pipe, request.plan)
    given = {"num_inference_steps": request.steps, "guidance_scale": 5.0, "max_sequence_length": 1}
    image = pipe(JOBS[1].prompt, generator=torch.Generator().manual_seed(8), output_type="np", **given).images[0]
    saved = np.asarray(Image.open(tmp_path / "000001.png"))
    assert np.array_equal(saved, (image * 255 + 0.5).astype(np.uint8))


def test_pictures_do_not_depend_on_what_was_drawn_before(
    tmp_path: Path, request_of: Callable[..., Request], pictures: Callable[[Path], dict[str, bytes]]
) -> None:
    drawn(request_of(), tmp_path / "a", *((job,) for job in JOBS))
    drawn(request_of(), tmp_path / "b", *((job,) for job in reversed(JOBS)))
    assert len(set(pictures(tmp_path / "a").values())) == 3
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


def test_a_report_tells_all_that_a_picture_depends_on_and_its_cost(
    tmp_path: Path, request_of: Callable[..., Request]
) -> None:
    request = request_of(plan=Plan(CATPolicy(alpha=0.5, warmup_steps=2)))
    handle = drawn(request, tmp_path / "one", JOBS[:1])._handle
    assert handle is not None
    told, cost = report(tmp_path / "one", JOBS[0]), handle.report()
    assert (told["name"], told["prompt"], told["seed"]) == ("000000", "a red circle", 7)
    assert told["settings"] == json.loads(json.dumps(request.settings))
    assert told["settings"]["plan"] == tokenprune.plans.files.mapping_of(request.plan)
    assert {"tokenprune-dit", "torch", "diffusers"} <= set(told["settings"]["versions"])
    assert told["cost"]["macs"] == cost.macs.total < cost.dense_macs.total == told["cost"]["dense_macs"]
    assert told["cost"]["tokens_of_steps"] == [256, 256, 128, 128]
    assert (told["cost"]["tokens"], told["cost"]["dense_tokens"]) == (768, 1024)
    assert told["cost"]["cache_bytes"] == cost.cache_bytes > 0
    assert (told["pictures_in_call"], told["process"]) == (1, 0)
    assert told["seconds"] > 0
    drawn(request, tmp_path / "two", JOBS[:2])
    both = report(tmp_path / "two", JOBS[0])
    assert both["pictures_in_call"] == 2
    assert both["cost"]["macs"] == told["cost"]["macs"]
    drawn(request_of(plan=None), tmp_path / "plain", JOBS[:1])
    assert report(tmp_path / "plain", JOBS[0])["cost"] is None


def test_what_is_there_is_not_drawn_again(
    tmp_path: Path,
    request_of: Callable[..., Request],
    pictures: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = drawn(request_of(), tmp_path, JOBS)
    whole = pictures(tmp_path)
    (tmp_path / "000001.json").unlink()
    kept = (tmp_path / "000000.png").stat().st_ino
    assert found.draw(JOBS) == [Outcome("000001")]  # the whole batch is drawn, as its pictures may depend on each other
    assert pictures(tmp_path) == whole
    assert (tmp_path / "000000.png").stat().st_ino == kept
    monkeypatch.setattr(painter, "call", failing("", AssertionError("nothing is left to draw")))
    assert found.draw(JOBS) == []


def test_a_prompt_that_fails_does_not_take_others_with_it(
    tmp_path: Path, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Painter(request_of(), Folder(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(painter, "call", failing("blue", RuntimeError("no blue\nhere")))
        assert found.draw(JOBS) == [
            Outcome("000000"),
            Outcome("000001", "RuntimeError: no blue here"),
            Outcome("000002"),
        ]
    assert report(tmp_path, JOBS[0])["pictures_in_call"] == 1
    assert json.loads((tmp_path / "000001.error").read_text())["error"] == "RuntimeError: no blue here"
    assert found.draw(JOBS) == [Outcome("000001")]
    assert sorted(file.name for file in tmp_path.glob("000001.*")) == ["000001.json", "000001.png"]


def test_one_failure_after_the_other_ends_the_drawing(
    tmp_path: Path, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of([*["a bad one"] * 9, "a good one", *["a bad one"] * 11])
    monkeypatch.setattr(painter, "call", failing("bad", UnsupportedCallError("refused")))
    found = Painter(request_of(), Folder(tmp_path))
    outcomes = [found.draw([job])[0] for job in jobs[:19]]
    assert [outcome.error for outcome in outcomes if outcome.error] == ["UnsupportedCallError: refused"] * 18
    message = (
        "10 prompts failed one after the other, 000019 with UnsupportedCallError: refused; what each failed with is"
    )
    with pytest.raises(FailuresError, match=message):
        found.draw(jobs[19:20])
    assert len(list(tmp_path.glob("*.error"))) == 19
    assert [file.stem for file in tmp_path.glob("*.png")] == ["000009"]
