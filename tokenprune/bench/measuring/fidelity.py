"""How near pictures are to those of the plain model, and how sure a mean of that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

Pictures = NDArray[np.uint8]
"""P pictures [P, height, width, 3]."""


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
