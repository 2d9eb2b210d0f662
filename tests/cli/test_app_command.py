"""What `tokenprune app` refuses before it serves anything; tests/app has the page."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenprune.bench.commands import is_installed
from tokenprune.cli.app import APP

pytestmark = pytest.mark.skipif(not is_installed("gradio"), reason="gradio is not installed (extra 'app')")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--argument", "height=32"], "argument: expected a PIPELINE_DIR beside it, got none"),
        (["--variant", "fp16"], "variant: expected a PIPELINE_DIR beside it, got none"),
        (["--dtype", "int8"], "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        (["random:sd3-medium"], "model: expected weights that were trained, got random:sd3-medium, whose are random"),
        (["."], "'.' has no model_index.json"),
        (["shapes-sd3", "--argument", "height"], "argument: expected name=value, got 'height'"),
    ],
)
def test_what_cannot_be_drawn_with_is_refused(
    words: list[str], message: str, refused: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused("app", CliRunner().invoke(APP, ["app", *words, "--device", "cpu"]), message)


def test_a_port_that_is_taken_is_refused() -> None:
    """In a process of its own: Gradio leaves an event loop behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "tokenprune", "app", "--port", str(port), "--device", "cpu"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.splitlines()[-1].startswith("tokenprune app: port: expected a free one: ")
    assert str(port) in found.stderr
