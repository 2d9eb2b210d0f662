"""`tokenprune inspect`."""

from __future__ import annotations

import inspect as introspection
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tokenprune import CATPolicy, Plan, save_plan
from tokenprune.bench.subjects import transformers
from tokenprune.bench.subjects.transformers import load
from tokenprune.cli.app import APP
from tokenprune.cli.targets import Mapped, call_of, find_map
from tokenprune.embedded.load import EMBEDDED
from tokenprune.macs.example_calls import Wanted


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(APP, ["inspect", *arguments])


def cat_plan(folder: Path) -> str:
    """A file with a plan that keeps keys and values."""
    save_plan(Plan(CATPolicy(0.3)), folder / "plan.json")
    return str(folder / "plan.json")


def test_a_discovered_model(tmp_path: Path) -> None:
    result = run("models:example", "--tokens", "4096", "--dtype", "float32", "--plan", cat_plan(tmp_path))
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


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models_are_called_as_their_pipelines_do(name: str) -> None:
    pipe = EMBEDDED[name].load()
    pipe.set_progress_bar_config(disable=True)
    seen: list[dict[str, Any]] = []
    signature = introspection.signature(pipe.transformer.forward)
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(signature.bind(*args, **kwargs).arguments), with_kwargs=True
    )
    pipe("a red circle", num_inference_steps=1, output_type="latent", **EMBEDDED[name].arguments)
    loaded = load(name)
    called = call_of(loaded, Wanted())
    assert called is not None
    for argument in ("hidden_states", "encoder_hidden_states"):
        assert called.call.arguments[argument].shape == seen[0][argument].shape
    side = 128 if name.endswith("-128") else 64
    assert called.size == f"{side} x {side} pixels"


def test_sizes_of_an_embedded_model(tmp_path: Path) -> None:
    shared = ("shapes-sd3", "--size", "128", "--dtype", "float32", "--steps", "10")
    result = run(*shared, "--plan", cat_plan(tmp_path))
    planned = run(*shared, "--budget", "0.5")
    assert (result.exit_code, planned.exit_code) == (0, 0), result.stderr + planned.stderr
    for line in ("PlacedSchedule(budget=0.5", "Corrector(", "50.0% of the plain model's", "none are kept"):
        assert line in planned.stdout
    keys = 8 * (1024 + 49) * 2 * 128 * 4 / 2**20
    for line in (
        "32 x 32 = 1024 tokens",
        "49 tokens",
        "both halves in one call",
        "CATPolicy(alpha=0.3",
        "10, ",
        f"{keys:.1f} MiB for each image of 1024 tokens, float32, {2 * keys:.1f} MiB with both guidance halves",
        "with this plan's forecasts",
    ):
        assert line in result.stdout


def test_json_has_the_facts_and_their_numbers(tmp_path: Path) -> None:
    result = run("shapes-sd3", "--dtype", "float32", "--steps", "10", "--plan", cat_plan(tmp_path), "--json")
    told = json.loads(result.stdout)
    assert (told["model"], told["origin"]) == ("SD3Transformer2DModel", "from its adapter")
    assert told["facts"]["token grid"] == "16 x 16 = 256 tokens"
    figures = told["figures"]
    assert figures["tokens_of_steps"] == [256] * 8 + [76] * 2
    assert figures["key_value_bytes"] == 2 * 8 * (256 + 49) * 2 * 128 * 4
    assert figures["key_value_bytes"] < figures["cache_bytes"]
    assert f"{figures['macs'] / figures['plain_macs']:.1%} of the plain model's" in told["facts"]["MACs"]
    code = json.loads(run("shapes-sd3", "--code", "--json").stdout)["code"]
    assert code == run("shapes-sd3", "--code").stdout


def test_a_class_and_what_is_known_of_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "flash")
    result = run("LTXVideoTransformer3DModel", "--size", "64", "--frames", "9", "--text", "7", "--steps", "4")
    assert result.exit_code == 0, result.stderr
    assert "2 x 2 x 2 = 8 tokens" in result.stdout
    assert "note: attention through flash does not reach torch's scaled_dot_product_attention" in result.stdout


def test_a_model_that_reads_values_shows_its_steps_and_says_why_no_sizes() -> None:
    result = run("Lumina2Transformer2DModel", "--steps", "4")
    assert result.exit_code == 0, result.stderr
    assert "64 x 64 = 4096 tokens" in result.stdout
    assert "reads values of its tensors" in result.stdout
    assert "keys, values" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: neither a directory, an embedded model"),
        (["black/box"], "black/box: no such directory, and no config of a transformer among downloaded models"),
        (["SanaTransformer2DModel"], "SanaTransformer2DModel: token pruning cannot work with this model: its linear"),
        (["HunyuanDiT2DModel"], "HunyuanDiT2DModel: TypeError"),
        (["DDIMScheduler"], "DDIMScheduler: TypeError: DDIMScheduler is no model"),
        (
            ["shapes-sd3", "--size", "10"],
            "height: expected a multiple of 4 pixels (2 to a latent, 2 latents to a token)",
        ),
        (["shapes-sd3", "--steps", "-1"], "steps: expected at least 1, got -1"),
        (["shapes-sd3", "--plan", "missing.json"], "missing.json"),
        (["shapes-sd3", "--budget", "most"], "budget: expected a share or one of quality, balanced, fast, got 'most'"),
        (["models:example", "--size", "64"], "height, width: the factory's arguments say that already"),
        (["models:nothing"], "models:nothing: AttributeError"),
        (["shapes-sd3", "--check"], "check: expected a factory, module.path:factory, that gives a model with weights"),
        (["models:DiT"], "DiT: no adapter describes this model; to have it discovered"),
        (["models:example", "--dtype", "int8"], "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        (["models:hopeless"], "Recurrent: no adapter describes this model, and it could not be discovered"),
        (["."], "expected a diffusers model, found no config.json"),
    ],
)
def test_bad_input(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "_hub_answers", lambda: False)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_the_check_of_a_map() -> None:
    result = run("models:example", "--check")
    assert result.exit_code == 0, result.stderr
    assert "adapter of DiT\n  map          passed       3 blocks, 3 attention modules" in result.stdout
    assert "noise level  passed" in result.stdout
    assert "not checkable:" in result.stdout
    assert result.stderr.splitlines()[-1] == "remove: passed (11 of 11)"
    told = json.loads(run("models:example", "--check", "--json").stdout)["check"]
    assert [(each["name"], each["outcome"]) for each in told["findings"][:2]] == [("map", "passed"), ("full", "passed")]


def test_a_map_that_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table says how far it came, the error what is wrong."""

    def wrong(loaded: Any) -> Mapped:
        found = find_map(loaded)
        return Mapped(replace(found.map, exit="blocks.2"), found.origin, found.notes)

    monkeypatch.setattr("tokenprune.cli.inspect.find_map", wrong)
    result = run("models:example", "--check")
    assert result.exit_code == 2
    assert re.search(r"exit +failed +DiT: the adapter breaks 'exit'", result.stdout)
    assert "final_layer.linear still works on the tokens that blocks.2 gives" in result.stderr
