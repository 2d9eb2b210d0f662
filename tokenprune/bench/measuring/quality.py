"""Metrics of pictures beyond PSNR and SSIM, each with a model of its own: see docs/metrics.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.bench.measuring.fidelity import Pictures, ci95_of, in_bytes, mean_of
from tokenprune.errors import ConfigurationError, one_line

One = Callable[[Tensor, Tensor, str], Tensor]
"""Of a picture [3, height, width], 0 to 255, the plain model's of the same seed, and their prompt: one number."""


LONGEST_REASON = 200
"""Characters of the reason why a metric was left out."""


@dataclass(frozen=True)
class Metric:
    """How a metric is loaded and shown.

    Attributes:
        load: gets the name or directory of a model, and the device to put it on.
        title: of its column in tables.
        show: format of its mean and interval.
        model: what is loaded where none is named; None where one must be.
        models: what can be named.
    """

    load: Callable[[str, str], One]
    title: str
    show: str
    model: str | None
    models: str


def _lpips(net: str, device: str) -> One:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    distance = LearnedPerceptualImagePatchSimilarity(net, normalize=True).to(device)
    return lambda picture, plain, _: distance(picture.unsqueeze(0) / 255, plain.unsqueeze(0) / 255)


def _clip_score(model: str, device: str) -> One:
    from torchmetrics.functional.multimodal import clip_score

    parts = _clip(model, device)
    return lambda picture, _, prompt: clip_score(picture, prompt, lambda: parts)


def _clip_iqa(model: str, device: str) -> One:
    from torchmetrics.functional.multimodal import clip_image_quality_assessment

    parts = _clip(model, device)
    # the processor of the model divides by 255 itself, whatever `data_range` says
    return lambda picture, *_: clip_image_quality_assessment(picture.unsqueeze(0), lambda: parts, data_range=1.0)


def _pick_score(model: str, device: str) -> One:
    clip, processor = _clip(model, device)

    def score(picture: Tensor, _: Tensor, prompt: str) -> Tensor:
        inputs = processor(text=[prompt], images=[picture.cpu()], return_tensors="pt", padding=True)
        return clip.model(**inputs.to(device)).logits_per_image

    return score


CLIP_MODELS = "the directory or hub name of a CLIP model with its processor"


METRICS: Mapping[str, Metric] = {
    "lpips": Metric(_lpips, "LPIPS", ".4f", "alex", "alex, vgg or squeeze"),
    "clip-score": Metric(_clip_score, "CLIP score", ".2f", None, CLIP_MODELS),
    "clip-iqa": Metric(_clip_iqa, "CLIP-IQA", ".3f", None, CLIP_MODELS),
    "pick-score": Metric(_pick_score, "pick score", ".2f", None, CLIP_MODELS),
}


UNASKED = ("lpips",)
"""Metrics that are measured wherever they can be loaded."""


@dataclass(frozen=True)
class Quality:
    """Loaded metrics.

    Attributes:
        loaded: by name.
        models: what each was loaded from.
        left_out: why metrics that nobody asked for could not be loaded.
        device: where they compute.
    """

    loaded: Mapping[str, One] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """What a result file says about the metrics of its rows."""
        return {"metrics": dict(self.models), "metrics_left_out": dict(self.left_out)}

    def figures(self, pictures: Pictures, reference: Pictures, prompts: Sequence[str]) -> dict[str, float | None]:
        """Mean and 95 % interval of every metric over P pictures [P, height, width, 3]; no interval of a single one.

        Args:
            pictures: as they were drawn.
            reference: the plain model's, of the same seeds.
            prompts: one for each picture.
        """
        seen = (torch.from_numpy(in_bytes(them)) for them in (pictures, reference))
        shown, plain = (them.permute(0, 3, 1, 2).to(self.device) for them in seen)
        found: dict[str, float | None] = {}
        for name, one in self.loaded.items():
            with torch.no_grad():
                values = [float(one(*each)) for each in zip(shown, plain, prompts, strict=True)]
            found[mean_field(name)], found[ci95_field(name)] = mean_of(values), ci95_of(values)
        return found


def mean_field(name: str) -> str:
    """The field of a row that holds a metric's mean."""
    return f"{name.replace('-', '_')}_mean"


def ci95_field(name: str) -> str:
    """The field of a row that holds half the width of its 95 % interval."""
    return f"{name.replace('-', '_')}_ci95"


def find_quality(asked: Sequence[str], device: str = "cpu") -> Quality:
    """The metrics asked for, as `name` or `name=model`, and those of `UNASKED` that can be loaded.

    Raises:
        ConfigurationError: no such metric, one asked for twice, without its model, or that cannot be loaded.
    """
    models = _read(asked)
    loaded, left_out = {}, {}
    for name in [*models, *(name for name in UNASKED if name not in models)]:
        model = models.get(name) or str(METRICS[name].model)
        try:
            loaded[name] = METRICS[name].load(model, device)
        except (ImportError, OSError, ValueError, TypeError, RuntimeError) as error:
            reason = shorten(one_line(error), LONGEST_REASON, placeholder="...")
            if name in models:
                raise ConfigurationError(f"metric: {name}={model} cannot be loaded: {reason}") from error
            left_out[name] = reason
        else:
            models[name] = model
    return Quality(loaded, models, left_out, device)


def _read(asked: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in asked:
        name, _, model = text.partition("=")
        if name not in METRICS:
            raise ConfigurationError(f"metric: expected one of {', '.join(METRICS)}, got {text!r}")
        if name in found:
            raise ConfigurationError(f"metric: expected {name} once, got it twice")
        if not (model or METRICS[name].model):
            raise ConfigurationError(f"metric: expected {name}=MODEL, {METRICS[name].models}, got {text!r}")
        found[name] = model or str(METRICS[name].model)
    return found


class _Features(nn.Module):
    """A CLIP model that returns bare features, as torchmetrics expects; transformers 5 puts them into an output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return _bare(self.model.get_image_features(pixels))  # type: ignore[operator]

    def get_text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return _bare(self.model.get_text_features(tokens, mask))  # type: ignore[operator]


def _bare(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output


def _clip(name: str, device: str) -> tuple[_Features, Callable[..., Any]]:
    """A CLIP model and its processor, which cuts prompts that are too long for it."""
    from transformers import AutoProcessor, CLIPConfig, CLIPModel

    config = CLIPConfig.get_config_dict(name)[0]
    if config.get("model_type") != "clip":
        raise ValueError(f"expected {CLIP_MODELS}, got a model of the type {config.get('model_type')!r}")
    model, loading = CLIPModel.from_pretrained(name, output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"expected {CLIP_MODELS}; its weights lack {len(missing)} tensors, such as {missing[0]}")
    return _Features(model.eval().to(device)), partial(AutoProcessor.from_pretrained(name), truncation=True)
