"""What each step computes, as the README shows it: `python -m tokenprune.bench.studies.steps_and_tokens`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

import tokenprune
from tokenprune.bench.commands import check_known, run
from tokenprune.bench.measuring.fidelity import Picture, psnr
from tokenprune.embedded.load import EMBEDDED, quiet
from tokenprune.policies import CATPolicy, DensePolicy
from tokenprune.reports.outputs import check_output
from tokenprune.reports.report import Report
from tokenprune.reports.trace import Trace

PROMPT = "a large striped red circle on the left and a small blue star at the top right, on a green background"
COMPUTED, REUSED, PAPER = (42, 111, 176), (222, 229, 238), (255, 255, 255)


def lane(trace: Trace, gap: int = 2) -> NDArray[np.uint8]:
    """The token maps of all steps side by side: [h, S (w + gap) - gap, 3], computed tokens dark, reused ones pale."""
    maps = trace.computed[:, 0].view(-1, *trace.grid).numpy()
    shown = np.full((trace.grid[0], len(maps), trace.grid[1] + gap, 3), PAPER, np.uint8)
    shown[:, :, : trace.grid[1]] = np.where(maps.transpose(1, 0, 2)[..., None], COMPUTED, REUSED)
    lined: NDArray[np.uint8] = shown.reshape(trace.grid[0], -1, 3)[:, :-gap]
    return lined


def main(
    model: Annotated[str, typer.Option(help="shapes-sd3 or shapes-pixart.")] = "shapes-sd3",
    prompt: Annotated[str, typer.Option(help="What to draw.")] = PROMPT,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the sampler.")] = 28,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("docs/images/steps.png"),
) -> None:
    """Draw a picture with the plain model, the recommended plan and CAT, and the tokens that each step computed."""
    from tokenprune.bench.figures.canvas import new_figure, save, show

    check_known("model", [model], EMBEDDED)
    check_output("out", out, ".png")
    quiet()
    source = EMBEDDED[model]
    pipe = source.load()
    pipe.set_progress_bar_config(disable=True)

    def draw(plan: Any) -> tuple[Picture, Trace, Report]:
        with tokenprune.apply(pipe, plan, trace=True) as handle:
            drawn = pipe(
                prompt,
                num_inference_steps=steps,
                guidance_scale=source.guidance_scale,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
                **source.arguments,
            ).images[0]
            return drawn, handle.trace, handle.report()

    plans = {
        "plain model": DensePolicy(),
        "recommended plan": tokenprune.plan(pipe, speedup=2),
        "CAT Pruning": CATPolicy(alpha=0.3, warmup_steps=min(8, steps - 1)),
    }
    figure = new_figure(
        15, 3.6, f"Each square is one of {steps} steps: tokens that it computes are dark, others pale", 100
    )
    grid = figure.add_gridspec(len(plans), 2, width_ratios=(12, 1))
    dense: Picture | None = None
    for row, (name, plan) in enumerate(plans.items()):
        picture, trace, report = draw(plan)
        said = f"{report.mac_ratio:.0%} of the operations"
        if dense is None:
            dense = picture
        else:
            distance = psnr(picture, dense)
            said += ", identical picture" if distance is None else f", picture {distance:.0f} dB from the plain model's"
        axis = figure.add_subplot(grid[row, 0])
        show(axis, lane(trace))
        axis.set_title(f"{name}: {said}", fontsize=11, loc="left")
        show(figure.add_subplot(grid[row, 1]), picture)
        print(f"{name}: {said}")
    out.parent.mkdir(parents=True, exist_ok=True)
    save(figure, out)
    print(out)


if __name__ == "__main__":
    run(main, "tokenprune.bench.studies.steps_and_tokens")
