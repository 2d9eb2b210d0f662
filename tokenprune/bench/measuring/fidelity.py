"""How near pictures are to those of the plain model, and how sure a mean of that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit

Picture = NDArray[np.uint8]
"""[height, width, 3], in bytes."""


Pictures = NDArray[np.float32]
"""P pictures [P, height, width, 3] as they come from the decoder, 0 to 1: bytes hide what is nearer than 55 dB."""


IDENTICAL = "identical"
"""What tables say in the place of the PSNR of identical pictures, which is infinite and `null` in JSON."""


def in_bytes(pictures: Pictures) -> NDArray[np.uint8]:
    """The pictures as a screen shows them."""
    return (pictures * 255 + 0.5).clip(0, 255).astype(np.uint8)


def psnr(picture: NDArray[Any], reference: NDArray[Any], peak: float = 1.0) -> float | None:
    """Peak signal-to-noise ratio of a picture to another of its size in dB; None if identical."""
    error = float(np.square(picture.astype(np.float64) - reference).mean())
    return 10 * float(np.log10(peak**2 / error)) if error else None


def ssim(picture: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Structural similarity of a picture to another of its size, -1 to 1."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = (torch.from_numpy(each).permute(2, 0, 1).unsqueeze(0) for each in (picture, reference))
    return float(structural_similarity_index_measure(*pair, data_range=1.0))


def psnr_of_each(pictures: Pictures, reference: Pictures) -> list[float | None]:
    """PSNR of each picture to the reference's of the same seed."""
    return [psnr(*pair) for pair in zip(pictures, reference, strict=True)]


def ssim_of_each(pictures: Pictures, reference: Pictures) -> list[float]:
    """SSIM of each picture to the reference's of the same seed."""
    return [ssim(*pair) for pair in zip(pictures, reference, strict=True)]


def comparable(values: Sequence[float | None], pictures: Pictures) -> list[float]:
    """PSNR of each picture as numbers to rank by, which a picture that nobody can tell apart does not decide alone.

    Identical pictures, and all that are nearer than that, count as if one value of a picture in bytes were off by one.

    Args:
        values: PSNR in dB, None where identical.
        pictures: any of that size [P, height, width, 3].
    """
    highest = 10 * float(np.log10(255.0**2 * np.prod(pictures.shape[1:])))
    return [highest if value is None else min(value, highest) for value in values]


def mean_of(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return float(np.mean(np.asarray(values, dtype=np.float64)))


def students_t(count: int) -> float:
    """By how many standard errors a mean of so many values, at least two, may be off: 95 %, both sides."""
    return float(stdtrit(count - 1, 0.975))


def ci95_of(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, by Student's t; None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    spread = float(np.std(np.asarray(values, dtype=np.float64), ddof=1))
    return students_t(count) * spread / count**0.5


def psnr_summary(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean PSNR of the pictures that are not identical, and half its 95 % interval; None where there is none."""
    differing = [value for value in values if value is not None]
    return (mean_of(differing), ci95_of(differing)) if differing else (None, None)


def in_words(mean: float | None, ci95: float | None, identical: int = 0, digits: int = 1) -> str:
    """A PSNR for tables: `45.5 ± 0.6`, without the interval where there is none, or `identical`.

    Args:
        mean: in dB, of the pictures that differ; None where all are identical.
        ci95: half the width of its interval, if known.
        identical: how many further pictures are identical.
        digits: behind the point.
    """
    if mean is None:
        return IDENTICAL
    interval = "" if ci95 is None else f" ± {ci95:.{digits}f}"
    others = f", {identical} {IDENTICAL}" if identical else ""
    return f"{mean:.{digits}f}{interval}{others}"
