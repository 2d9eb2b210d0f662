"""`tokenprune inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from tokenprune.cli.inspect import inspect


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(inspect)
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments)


def test_a_discovered_model() -> None:
    result = run("models:example", "--tokens", "4096", "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    for line in (
        "DiT, discovered",
        "blocks.0, of 3 blocks up to blocks.2",
        "3 x image",
        "final_layer (image)",
        "x, t",
        "4 x 6 = 24 tokens",
        "1.5 MiB for each image of 4096 tokens, float32",
        "note: the noise is taken to fall as 't' falls",
    ):
        assert line in result.stdout


def test_the_code_is_an_adapter() -> None:
    result = run("models:example", "--code")
    assert result.exit_code == 0, result.stderr
    scope: dict[str, Any] = {}
    exec(result.stdout, scope)
    found = scope["module_map"](None)
    assert found.blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert [site.path for site in found.attentions] == ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]
    assert (found.exit, found.latents, found.time, found.noise_channels) == ("final_layer", "x", "t", 4)


def test_a_directory_with_an_adapter(tmp_path: Path) -> None:
    settings = {"_class_name": "PixArtTransformer2DModel", "num_layers": 3, "sample_size": 8}
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(settings))
    result = run(str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert "PixArtTransformer2DModel, from its adapter" in result.stdout
    assert "transformer_blocks.0, of 3 blocks up to transformer_blocks.2" in result.stdout
    assert "6 layers that see 'encoder_hidden_states' alone" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: neither a directory nor module.path:factory"),
        (["models:nothing"], "models:nothing: AttributeError"),
        (["models:DiT"], "DiT: no adapter describes this model; to have it discovered"),
        (["models:example", "--dtype", "int8"], "dtype: expected one of float32, float16, bfloat16, got 'int8'"),
        (["models:hopeless"], "Recurrent: no adapter describes this model, and it could not be discovered"),
        (["."], "expected a diffusers model, found no config.json"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
