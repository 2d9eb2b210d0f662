"""The page on the viewer: its code runs, its picture is there, and it names what the page has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "viewer.md").read_text()


def test_the_code_writes_pages(
    sd3: nn.Module, generate: Callable[..., Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = Image.new("RGB", (12, 8))

    def decode(latents: Tensor, return_dict: bool) -> list[Tensor]:
        return [latents]

    def postprocess(decoded: Tensor, output_type: str) -> list[Image.Image]:
        return [picture] * len(decoded)

    class Pipe:
        transformer = sd3
        image_processor = SimpleNamespace(postprocess=postprocess)
        vae = SimpleNamespace(config={"latent_channels": 4}, dtype=torch.float32, decode=decode)
        components = {"vae": vae}  # noqa: RUF012

    def draw(callback_on_step_end: Any = None) -> Image.Image:
        for step, latents in enumerate(generate(sd3)):
            if callback_on_step_end is not None:
                callback_on_step_end(None, step, None, {"latents": latents})
        return picture

    scope: dict[str, Any] = {"pipe": Pipe(), "draw": draw}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(code, scope)
    one, several = (data(tmp_path / name) for name in ("run.html", "runs.html"))
    assert [run["name"] for run in several["runs"]] == ["CAT", "noise"]
    assert [*one["runs"][0]["previews"]] == ["0", "2", "4"]
    assert one["dense"] == one["runs"][0]["picture"]
    assert one["title"] == several["title"] == "a red circle"


def data(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    assert found
    return json.loads(found[1])


def test_its_picture_is_small() -> None:
    (path,) = re.findall(r"!\[[^\]]+\]\((.*?)\)", TEXT)
    assert 20_000 < (DOCS / path).stat().st_size < 200_000
    assert f"--screenshot=docs/{path}" in TEXT


@pytest.mark.parametrize("words", ["computed tokens", "ages", "clusters"])
def test_the_views_are_called_what_the_page_calls_them(words: str) -> None:
    template = DOCS.parent / "tokenprune" / "reports" / "viewer" / "template.html.jinja"
    assert f'"{words}"' in template.read_text()
    assert f"| {words} |" in TEXT
