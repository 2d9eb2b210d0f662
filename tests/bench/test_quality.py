"""Metrics with models of their own, on small real ones with random weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoProcessor, CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tokenprune.bench.configurations.configuration import plain
from tokenprune.bench.measuring.fidelity import ci95_of, in_bytes, mean_of
from tokenprune.bench.measuring.measure import Task
from tokenprune.bench.measuring.quality import METRICS, UNASKED, ci95_field, find_quality, mean_field
from tokenprune.bench.measuring.result_file import Measured, Results
from tokenprune.bench.measuring.run import run
from tokenprune.bench.tables.cells import markdown
from tokenprune.embedded.load import EMBEDDED
from tokenprune.errors import ConfigurationError

PROMPTS = ["a red circle on a green background", "a blue star"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED["shapes-sd3"].folder / "tokenizer")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**size, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    vision = {**size, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for weight in model.parameters():  # initial weights are so small that all pictures are alike
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures() -> Any:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32) / 255


def cosines_and_logits(folder: Path, pictures: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """By the model's own call: [P, texts] each."""
    model, processor = CLIPModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        found = model(**processor(text=texts, images=list(in_bytes(pictures)), return_tensors="pt", padding=True))
    return found.image_embeds @ found.text_embeds.T, found.logits_per_image


def test_scores_of_a_clip_model_are_its_own_of_each_picture_with_its_prompt(clip: Path, pictures: Any) -> None:
    found = find_quality([f"clip-score={clip}", f"pick-score={clip}"])
    figures = found.figures(pictures, pictures[[1, 0]], PROMPTS)
    cosines, logits = cosines_and_logits(clip, pictures, PROMPTS)
    scores = (100 * cosines.diagonal()).clamp(min=0).tolist()
    assert scores[0] != pytest.approx(scores[1], abs=0.1)
    assert figures["clip_score_mean"] == pytest.approx(mean_of(scores), abs=1e-3)
    assert figures["clip_score_ci95"] == pytest.approx(ci95_of(scores), abs=1e-2)
    picks = logits.diagonal().tolist()
    assert figures["pick_score_mean"] == pytest.approx(mean_of(picks), abs=1e-4)
    assert figures["pick_score_ci95"] == pytest.approx(ci95_of(picks), abs=1e-3)


def test_clip_iqa_weighs_a_good_photo_against_a_bad_one(clip: Path, pictures: Any) -> None:
    figures = find_quality([f"clip-iqa={clip}"]).figures(pictures, pictures, PROMPTS)
    cosines, _ = cosines_and_logits(clip, pictures, ["Good photo.", "Bad photo."])
    chances = (100 * cosines).softmax(-1)[:, 0].tolist()
    assert figures["clip_iqa_mean"] == pytest.approx(mean_of(chances), abs=1e-3)
    assert figures["clip_iqa_ci95"] == pytest.approx(ci95_of(chances), abs=1e-2)
    single = find_quality([f"clip-iqa={clip}"]).figures(pictures[:1], pictures[:1], PROMPTS[:1])
    assert single == {"clip_iqa_mean": pytest.approx(chances[0], abs=1e-3), "clip_iqa_ci95": None}


def test_a_prompt_that_is_too_long_is_cut(clip: Path, pictures: Any) -> None:
    figures = find_quality([f"clip-score={clip}", f"pick-score={clip}"]).figures(
        pictures, pictures, [" ".join(PROMPTS * 20)] * 2
    )
    assert all(np.isfinite(value) for value in figures.values())


@pytest.fixture
def alexnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that torchvision would bring, with random weights."""

    def features(*_: object) -> nn.Sequential:
        torch.manual_seed(0)
        convolutions = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1)]
        convolutions.append((256, 256, 3, 1, 1))
        layers: list[nn.Module] = []
        for number, (inputs, outputs, kernel, stride, padding) in enumerate(convolutions):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else []
        return nn.Sequential(*layers)

    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", features)


@pytest.mark.usefixtures("alexnet")
def test_lpips_compares_with_the_plain_models_picture(pictures: Any) -> None:
    found = find_quality(["lpips"])
    assert found.settings == {"metrics": {"lpips": "alex"}, "metrics_left_out": {}}
    assert found.figures(pictures, pictures, PROMPTS) == {"lpips_mean": 0, "lpips_ci95": 0}
    near = np.clip(pictures + 2 / 255, 0, 1)
    distances = [found.figures(them, pictures, PROMPTS)["lpips_mean"] for them in (near, pictures[[1, 0]])]
    assert 0 < distances[0] < distances[1]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_torchvision_lpips_is_left_out_with_a_reason_or_refused_where_it_was_asked_for() -> None:
    found = find_quality([])
    assert found.settings["metrics"] == {}
    assert list(found.left_out) == list(UNASKED) == ["lpips"]
    assert "torchvision" in found.left_out["lpips"]
    assert "\n" not in found.left_out["lpips"]
    with pytest.raises(ConfigurationError, match=r"metric: lpips=alex cannot be loaded: .*torchvision"):
        find_quality(["lpips"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["fid"], "metric: expected one of lpips, clip-score, clip-iqa, pick-score, got 'fid'"),
        (["clip-score"], "metric: expected clip-score=MODEL, the directory"),
        (["pick-score="], "metric: expected pick-score=MODEL"),
        (["clip-score=a", "clip-score=b"], "metric: expected clip-score once"),
        (["clip-score=./nowhere"], "metric: clip-score=./nowhere cannot be loaded: "),
    ],
)
def test_a_metric_that_cannot_be_is_refused_in_one_line(asked: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as found:
        find_quality(asked)
    assert str(found.value).startswith(message)
    assert "\n" not in str(found.value)


def test_a_model_of_another_kind_or_without_all_its_weights_is_refused(clip: Path, tmp_path: Path) -> None:
    encoder = EMBEDDED["shapes-sd3"].folder / "text_encoder"
    with pytest.raises(ConfigurationError, match=r"cannot be loaded: expected .*'clip_text_model'"):
        find_quality([f"clip-score={encoder}"])
    model = CLIPModel.from_pretrained(clip)
    weights = {name: weight for name, weight in model.state_dict().items() if name != "visual_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ConfigurationError, match=r"its weights lack 1 tensors, such as visual_projection\.weight"):
        find_quality([f"clip-score={tmp_path}"])


def test_every_metric_has_checked_fields_and_a_column() -> None:
    row = {
        "name": "a",
        "source": "s",
        "steps": 2,
        "tokens_ratio": 0.5,
        "mac_ratio": 0.5,
        "total_mac_ratio": 0.5,
        "psnr_mean": 40.0,
        "psnr_ci95": 1.0,
        "ssim_mean": 0.9,
    }
    settings = {
        "command": "c",
        "model": "m",
        "split": "tuning",
        "steps": 2,
        "guidance_scale": None,
        "prompts": 2,
        "versions": {},
        "machine": "a",
        "date": "2026-01-01",
    }
    for name, metric in METRICS.items():
        assert {mean_field(name), ci95_field(name)} <= set(Measured.model_fields)
        measured = {**row, "name": "b", mean_field(name): 0.25, ci95_field(name): 0.125}
        table = markdown(Results(settings, [row, measured]))
        assert f"| {metric.title} |" in table
        assert f"{0.25:{metric.show}} ± {0.125:{metric.show}}" in table
        assert metric.title not in markdown(Results(settings, [row]))


def test_a_run_has_the_metrics_in_its_rows(pipe: Any, clip: Path, tmp_path: Path) -> None:
    task = Task(PROMPTS, 3, 4.0, 2, EMBEDDED["shapes-sd3"].arguments)
    found = find_quality([f"clip-score={clip}"])
    settings = {"model": "shapes-sd3", "command": "pytest", **found.settings}
    results = run(pipe, [plain(3), plain(2)], task, tmp_path / "r.json", settings, quality=found.figures)
    same, fewer = results.rows
    assert results.settings["metrics"] == {"clip-score": str(clip)}
    assert same["clip_score_mean"] != fewer["clip_score_mean"]
    assert fewer["clip_score_ci95"] > 0
