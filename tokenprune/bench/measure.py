"""Drawing the prompts of a bench run with one configuration, and comparing the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tokenprune.bench.configuration import Configuration

Pictures = NDArray[np.uint8]
"""P pictures [P, height, width, 3]."""


@dataclass(frozen=True)
class Task:
    """What every configuration draws.

    Attributes:
        prompts: one picture each; picture i starts from the noise of seed i.
        steps: steps of the sampler.
        guidance_scale: classifier-free guidance.
        batch: pictures drawn at a time.
        arguments: further arguments of the pipeline's call.
    """

    prompts: Sequence[str]
    steps: int
    guidance_scale: float
    batch: int
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """Pictures, and what they cost as shares of the plain model's at the same number of steps.

    Attributes:
        pictures: [P, height, width, 3].
        tokens_ratio: image tokens computed.
        mac_ratio: multiply-accumulates of linear layers and attention.
        linear_mac_ratio: those of the linear layers alone.
        cache_bytes: largest memory that the caches held, for one batch.
    """

    pictures: Pictures
    tokens_ratio: float = 1.0
    mac_ratio: float = 1.0
    linear_mac_ratio: float = 1.0
    cache_bytes: int = 0


def draw(pipe: Any, configuration: Configuration, task: Task) -> Drawn:
    """Draw all prompts of the task; the pipeline is left as it was."""
    steps = configuration.steps or task.steps
    scale = steps / task.steps
    with configuration.on(pipe) as handle:
        pictures = draw_all(pipe, steps, task)
        report = handle.report() if handle is not None else None
    if report is None:
        return Drawn(pictures, scale, scale, scale)
    return Drawn(
        pictures,
        tokens_ratio=scale * report.tokens_ratio,
        mac_ratio=scale * report.mac_ratio,
        linear_mac_ratio=scale * report.macs.linear / report.dense_macs.linear,
        cache_bytes=report.cache_bytes,
    )


def draw_all(pipe: Any, steps: int, task: Task) -> Pictures:
    """Pictures of all prompts of the task with the pipeline as it is."""
    pictures = []
    for start in range(0, len(task.prompts), task.batch):
        prompts = list(task.prompts[start : start + task.batch])
        result = pipe(
            prompts,
            num_inference_steps=steps,
            guidance_scale=task.guidance_scale,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(prompts))],
            output_type="np",
            **task.arguments,
        )
        pictures.append(result.images)
    return (np.concatenate(pictures) * 255 + 0.5).clip(0, 255).astype(np.uint8)


def fidelity(pictures: Pictures, reference: Pictures) -> dict[str, list[float]]:
    """PSNR (dB) and SSIM of each picture to the reference's of the same seed; 99 dB where the two are equal."""
    found: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for pair in zip(pictures, reference, strict=True):
        made, wanted = (torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).float() for picture in pair)
        equal = torch.equal(made, wanted)
        found["psnr"].append(99.0 if equal else float(peak_signal_noise_ratio(made, wanted, data_range=255.0)))
        found["ssim"].append(float(structural_similarity_index_measure(made, wanted, data_range=255.0)))
    return found


def mean_and_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (normal; 0 for a single value)."""
    numbers = np.asarray(values, dtype=np.float64)
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return float(numbers.mean()), float(1.96 * spread / np.sqrt(len(numbers)))
