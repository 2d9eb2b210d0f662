"""What all figures share: how pictures, tokens and differences are laid out on paper."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenprune.bench.measuring.fidelity import Picture, in_words
from tokenprune.ops.grid import TokenGrid

DPI = 80


BLUE, ORANGE, GREY, INK = "#2a6fb0", "#d9661f", "#8a8f98", "#22262b"


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure, the numbers it shows, and one line that says what comes out."""

    figure: Any
    numbers: dict[str, Any]
    summary: str


def new_figure(width: float, height: float, title: str, dpi: int = DPI) -> Any:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def save(figure: Any, file: Path) -> None:
    """Write a figure as a PNG with colours rounded to 6 bits each, to keep the file small; white stays white."""
    whole = BytesIO()
    figure.savefig(whole)
    colours = np.asarray(Image.open(whole).convert("RGB")).astype(np.int64)
    Image.fromarray((colours // 4 * 85 // 21).astype(np.uint8)).save(file, optimize=True)


def show(axis: Any, picture: NDArray[Any], title: str = "", **options: Any) -> Any:
    """A picture [S, S, 3] or map [S, S], every pixel a square."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_title(title, fontsize=9, color=INK)
    return axis.imshow(picture, interpolation="nearest", **options)


def plain_axes(axis: Any, title: str, x: str, y: str) -> None:
    """Axes without ornament."""
    axis.set_title(title, fontsize=9, color=INK)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis: Any) -> None:
    """Ticks of the horizontal axis at whole numbers."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def colour_bar(figure: Any, shown: Any, axes: Any, label: str) -> None:
    """A scale for pictures that share their colours."""
    bar = figure.colorbar(shown, ax=axes, fraction=0.015, pad=0.01)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def over_pixels(tokens: Tensor, grid: TokenGrid, picture: Picture) -> NDArray[Any]:
    """Values of the tokens [N], spread over the picture's pixels [S, S].

    Raises:
        ValueError: the grid is not (h, w), or the picture's extents are no multiples of it.
    """
    height, width = picture.shape[:2]
    if len(grid) != 2 or height % grid[0] or width % grid[1]:
        raise ValueError(f"grid: expected (h, w) that divide the picture's {height} x {width} pixels, got {grid}")
    values = tokens.view(grid).numpy()
    return values.repeat(height // grid[0], axis=0).repeat(width // grid[1], axis=1)


def faded(picture: Picture, strength: float) -> Picture:
    """The picture in grey, and so much closer to white: 0 leaves the grey as it is, 1 gives white."""
    grey = picture.astype(np.float64).mean(-1, keepdims=True).repeat(3, axis=-1)
    return (grey + strength * (255 - grey)).astype(np.uint8)


def difference(picture: Picture, other: Picture) -> NDArray[np.float64]:
    """Absolute difference of two pictures [S, S], mean over the colours, of 255."""
    return np.abs(picture.astype(np.float64) - other).mean(-1)


def decibels(psnr: float | None) -> str:
    """A PSNR in words."""
    return in_words(psnr, None) + ("" if psnr is None else " dB")


def rounded(value: float | None, digits: int = 3) -> float | None:
    """A number for figures.json."""
    return None if value is None else round(float(value), digits)
