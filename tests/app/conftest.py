"""What the page draws with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small import make_sd3

from tokenprune.app.drawing import Studio
from tokenprune.app.requests import Request
from tokenprune.bench.subjects.pipelines import find_subject

EMBEDDED = "shapes-sd3"
PROMPT = "a red circle on a green background"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory of a user's."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    make_sd3().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def studio(saved: str) -> Iterator[Studio]:
    own = find_subject(saved, device="cpu", arguments={"height": 32, "width": 32, "max_sequence_length": 8})
    made = Studio({EMBEDDED: find_subject(EMBEDDED, device="cpu"), saved: own})
    yield made
    made.close()


@pytest.fixture
def wanted() -> Any:
    """Requests of four steps."""

    def make(**given: Any) -> Request:
        usual = {"model": EMBEDDED, "prompt": PROMPT, "seed": 3, "steps": 4, "guidance_scale": 5.0}
        return Request(**{**usual, "method": "speed-up", "value": 2.0, **given})

    return make
