"""Pipelines that a bench run can measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import make_sd3

from tokenprune import ConfigurationError
from tokenprune.bench.measuring.measure import Task, draw_all
from tokenprune.bench.subjects.pipelines import find_subject, read_arguments
from tokenprune.embedded.load import EMBEDDED


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny SD3 pipeline with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    make_sd3().save_pretrained(folder)
    return folder


def folder_of(path: Path, name: str | None, *parts: str) -> str:
    """A directory that says it holds a pipeline of that class."""
    described = {"_class_name": name, **{part: ["diffusers", "Model"] for part in parts}}
    (path / "model_index.json").write_text(json.dumps(described))
    return str(path)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_pipelines_come_with_their_own_settings(name: str) -> None:
    subject = find_subject(name, device="cpu")
    embedded = EMBEDDED[name]
    assert (subject.steps, subject.guidance_scale) == (embedded.steps, embedded.guidance_scale)
    assert subject.arguments == embedded.arguments
    assert subject.settings == {"dtype": "float32", "device": "cpu"}
    changed = find_subject(name, device="cpu", arguments={"max_sequence_length": 3})
    assert changed.arguments == {**embedded.arguments, "max_sequence_length": 3}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_pipeline_is_loaded_afresh_and_drawn_with(saved: Path, dtype: str) -> None:
    arguments = read_arguments(["max_sequence_length=8", "height=8", "width=8"])
    subject = find_subject(str(saved), dtype, "cpu", arguments=arguments)
    assert (subject.steps, subject.guidance_scale, subject.guided) == (28, 7.0, True)
    first, second = subject.load(), subject.load()
    assert first.transformer is not second.transformer
    assert {weight.dtype for weight in first.transformer.parameters()} == {getattr(torch, dtype)}
    task = Task(["a red circle", "a blue star"], 2, subject.guidance_scale, 2, subject.arguments)
    pictures = draw_all(first, 2, task)
    assert pictures.shape == (2, 8, 8, 3)
    assert np.array_equal(pictures, draw_all(second, 2, task))


def test_a_pipeline_without_guidance_is_not_given_any(tmp_path: Path) -> None:
    subject = find_subject(folder_of(tmp_path, "Flux2KleinKVPipeline", "transformer"), device="cpu")
    assert (subject.guided, subject.guidance_scale, subject.steps) == (False, None, 4)
    calls: list[dict[str, Any]] = []

    def pipe(**arguments: Any) -> SimpleNamespace:
        calls.append(arguments)
        return SimpleNamespace(images=np.zeros((1, 8, 8, 3)))

    draw_all(pipe, 4, Task(["a cat"], 4, subject.guidance_scale, 1, subject.arguments))
    assert set(calls[0]) == {"prompt", "num_inference_steps", "generator", "output_type"}


def test_arguments_that_a_pipeline_needs_must_be_given(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "Kandinsky5I2IPipeline", "transformer")
    with pytest.raises(ConfigurationError, match=r"Kandinsky5I2IPipeline\): needs image: pass --argument image=\.\.\."):
        find_subject(folder, device="cpu")
    assert find_subject(folder, device="cpu", arguments={"image": "a.png"}).arguments == {"image": "a.png"}


def test_arguments_are_read_as_yaml() -> None:
    texts = ["a=512", "b=0.5", "c=false", "d=[1, 2]", "e=a = b", "f=", "g='7'"]
    assert read_arguments(texts) == {"a": 512, "b": 0.5, "c": False, "d": [1, 2], "e": "a = b", "f": None, "g": "7"}
    for text in ("height", "=3", "a b=3", "a=[1"):
        with pytest.raises(ConfigurationError, match="argument: expected name=value"):
            read_arguments([text])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: str(path / "missing"),
            f"expected {', '.join(EMBEDDED)}, random:.*is no directory",
        ),
        (lambda path: str(path), "has no model_index.json"),
        (lambda path: folder_of(path, None), "its class is None"),
        (lambda path: folder_of(path, "SecretPipeline", "transformer"), "its class is 'SecretPipeline'"),
        (lambda path: folder_of(path, "StableDiffusionPipeline", "unet"), "StableDiffusionPipeline has no transformer"),
        (
            lambda path: folder_of(path, "WanPipeline", "transformer"),
            "expected a pipeline of pictures, got one of videos",
        ),
        (lambda path: folder_of(path, "DiTPipeline", "transformer"), r"\(DiTPipeline\): expected .* that takes prompt"),
    ],
)
def test_what_is_no_pipeline_to_measure_is_refused(make: Callable[[Path], str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        find_subject(make(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)


def test_other_settings_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in (
        ({"dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"device": "tpu"}, "device: expected one of cpu, cuda, got 'tpu'"),
        ({"device": "cuda"}, "device: expected cpu, as torch sees no CUDA device"),
        ({"arguments": {"hight": 8}}, "argument: expected one of .*height.*, got hight"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            find_subject(str(saved), **options)  # type: ignore[arg-type]


def test_weights_that_cannot_be_loaded_are_one_line(saved: Path) -> None:
    subject = find_subject(str(saved), device="cpu", variant="fp16")
    assert subject.settings["variant"] == "fp16"
    with pytest.raises(ConfigurationError, match="cannot be loaded as StableDiffusion3Pipeline: ") as caught:
        subject.load()
    assert "\n" not in str(caught.value)
