"""The pictures of the model cards: `python -m tokenprune.bench.studies.gallery --model shapes-pixart`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import torch
import typer

from tokenprune.bench.commands import check_known, run
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED, quiet
from tokenprune.reports.outputs import check_output

COLUMNS, ROWS = 4, 2


def main(
    model: Annotated[str, typer.Option(help=f"{' or '.join(EMBEDDED)}.")] = "shapes-sd3",
    out: Annotated[Path | None, typer.Option(help="PNG file to write; else the model card's.")] = None,
) -> None:
    """Draw the first held-out captions with the plain model."""
    from matplotlib.figure import Figure

    check_known("model", [model], EMBEDDED)
    path = out or Path("docs/images") / f"{model}.png"
    check_output("out", path, ".png")
    quiet()
    embedded = EMBEDDED[model]
    pipe = embedded.load()
    pipe.set_progress_bar_config(disable=True)
    captions = scenes.texts("held-out", COLUMNS * ROWS)
    pictures = pipe(
        captions,
        num_inference_steps=embedded.steps,
        guidance_scale=embedded.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(captions))],
        output_type="np",
        **embedded.arguments,
    ).images
    figure = Figure(figsize=(3 * COLUMNS, 3.5 * ROWS), dpi=70, layout="constrained")
    axes = figure.subplots(ROWS, COLUMNS)
    for axis, caption, picture in zip(axes.flat, captions, pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title("\n".join(textwrap.wrap(caption, 44)), fontsize=8)
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(path)


if __name__ == "__main__":
    run(main, "tokenprune.bench.studies.gallery")
