"""The pictures of the model cards: `python -m tokenprune.bench.studies.gallery --model shapes-pixart`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import torch
import typer

from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED, quiet

COLUMNS, ROWS = 4, 2


def main(
    model: Annotated[str, typer.Option(help="shapes-sd3 or shapes-pixart.")] = "shapes-sd3",
    out: Annotated[Path | None, typer.Option(help="PNG file to write; else the model card's.")] = None,
) -> None:
    """Draw the first held-out captions with the plain model."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    if model not in EMBEDDED:
        raise typer.BadParameter(f"model: expected one of {', '.join(EMBEDDED)}, got {model!r}")
    quiet()
    embedded = EMBEDDED[model]
    pipe = embedded.load()
    captions = [caption for caption, _ in scenes.captions("held-out", COLUMNS * ROWS)]
    pictures = pipe(
        captions,
        num_inference_steps=embedded.steps,
        guidance_scale=embedded.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(captions))],
        output_type="np",
        **embedded.arguments,
    ).images
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(3 * COLUMNS, 3.5 * ROWS), layout="constrained")
    for axis, caption, picture in zip(axes.flat, captions, pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title("\n".join(textwrap.wrap(caption, 44)), fontsize=8)
        axis.set_axis_off()
    path = out or Path("docs/images") / f"{model}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    print(path)


if __name__ == "__main__":
    typer.run(main)
