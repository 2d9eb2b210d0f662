"""The server of docs/server.md, as it stands there: requests in several threads get the pictures of a plain loop."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenprune
from tokenprune.embedded.load import load_shapes_sd3

PAGE = (Path(tokenprune.__file__).parents[1] / "docs" / "server.md").read_text()
STEPS = 6
PROMPTS = (
    "a red circle on a green background",
    "a small blue star at the top",
    "a large white square on the left",
)


@pytest.fixture(scope="module")
def scope() -> dict[str, Any]:
    """The names that the page's first code makes."""
    pytest.importorskip("fastapi", reason="the example's server, fastapi, is not installed")
    pytest.importorskip("httpx", reason="what fastapi tests with, httpx, is not installed")
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    found: dict[str, Any] = {"__name__": "server"}
    exec(code[1], found)
    return found


@pytest.fixture(scope="module")
def client(scope: dict[str, Any]) -> Any:
    from fastapi.testclient import TestClient

    return TestClient(scope["app"])


def drawn(pipe: Any, prompt: str, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipe(prompt, num_inference_steps=STEPS, generator=generator, max_sequence_length=1).images[0])


def test_requests_at_the_same_time_get_the_pictures_of_a_loop(client: Any) -> None:
    def ask(number: int) -> Any:
        return client.get("/picture", params={"prompt": PROMPTS[number], "seed": number, "steps": STEPS})

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(ask, range(len(PROMPTS))))
    pipe = load_shapes_sd3()
    with tokenprune.apply(pipe, tokenprune.plan(pipe, speedup=2)):
        for number, answer in enumerate(answers):
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            assert answer.headers["x-share-of-operations"] == "0.500"
            picture = np.asarray(Image.open(io.BytesIO(answer.content)))
            assert np.array_equal(picture, drawn(pipe, PROMPTS[number], number))


def test_a_request_that_cannot_be_meant_is_refused(client: Any) -> None:
    assert client.get("/picture", params={"prompt": "a red circle", "steps": 0}).status_code == 422


def test_an_error_of_the_package_is_the_answer_and_the_next_request_works(
    client: Any, scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise tokenprune.ConcurrentUseError("another thread's call is under way")

    asked = {"prompt": PROMPTS[0], "steps": 2}
    with monkeypatch.context() as patched:
        patched.setitem(scope, "pipe", refuse)
        answer = client.get("/picture", params=asked)
    assert (answer.status_code, answer.json()) == (500, {"detail": "another thread's call is under way"})
    assert client.get("/picture", params=asked).status_code == 200


def test_what_the_page_logs_is_there(scope: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    drawn(scope["pipe"], PROMPTS[0], 0)
    code = PAGE.split("## What to log")[1].split("```python\n")[1].split("```")[0]
    exec(code, {"handle": scope["handle"]})
    assert capsys.readouterr().out.startswith("0.5 ")
