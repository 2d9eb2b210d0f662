"""`tokenprune demo`: one prompt, dense and pruned, side by side, on the embedded model."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import tokenprune
from tokenprune.cli.quiet import quiet
from tokenprune.policies import CATPolicy
from tokenprune.report import Report

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

Picture = NDArray[np.uint8]
DEFAULT_PROMPT = "a large striped red circle on the left and a small blue star at the top right, on a green background"


@dataclass(frozen=True)
class Outcome:
    """One way of making the picture: median `seconds`, `picture` [S, S, 3], PSNR to the dense one, scene score."""

    name: str
    steps: int
    seconds: float
    picture: Picture
    psnr: float
    scene_score: float | None


def demo(
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = DEFAULT_PROMPT,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 28,
    alpha: Annotated[float, typer.Option(help="Fraction of image tokens computed at a pruned step.")] = 0.3,
    warmup_steps: Annotated[int, typer.Option(help="Full steps at the start.")] = 8,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="Where to write the panel (PNG).")] = Path("out/demo.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Draw PROMPT with the embedded shapes-sd3 model, dense and pruned by CAT, and compare the two.

    Also runs the plain model with as many fewer steps as cost the same: what pruning has to beat.
    """
    try:
        policy = CATPolicy(alpha=alpha, warmup_steps=warmup_steps)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    quiet()
    from tokenprune.embedded.load import EMPTY_TEXT_TOKENS, load_shapes_sd3

    pipe = load_shapes_sd3()

    def draw(name: str, number: int) -> Picture:
        pipe.set_progress_bar_config(desc=f"{name:>12}", leave=False, ncols=80)
        generator = torch.Generator().manual_seed(seed)
        arguments = {"guidance_scale": guidance_scale, "max_sequence_length": EMPTY_TEXT_TOKENS}
        result = pipe(prompt, num_inference_steps=number, generator=generator, output_type="np", **arguments)
        return np.asarray(result.images[0] * 255 + 0.5).clip(0, 255).astype(np.uint8)

    draw("warm-up", min(steps, warmup_steps + 2))
    report, fewer = _run_pruned_once(pipe, policy, lambda: draw("warm-up", steps), steps)
    seconds: dict[str, list[float]] = {"dense": [], "CAT": [], f"{fewer} steps": []}
    pictures: dict[str, Picture] = {}
    for _ in range(repeats):
        for name in seconds:
            handle = tokenprune.apply(pipe, policy) if name == "CAT" else None
            start = time.perf_counter()
            pictures[name] = draw(name, fewer if name.endswith("steps") else steps)
            seconds[name].append(time.perf_counter() - start)
            if handle is not None:
                report = handle.report()
                handle.remove()
    outcomes = {
        name: Outcome(
            name=name,
            steps=fewer if name.endswith("steps") else steps,
            seconds=statistics.median(seconds[name]),
            picture=picture,
            psnr=_psnr(picture, pictures["dense"]),
            scene_score=_scene_score(picture, prompt),
        )
        for name, picture in pictures.items()
    }
    _save_panel(out, prompt, outcomes, report)
    settings = {
        "prompt": prompt,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "repeats": repeats,
        "policy": asdict(policy),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tokens": report.steps[0].num_tokens,
    }
    if as_json:
        print(json.dumps(_as_json(outcomes, report, out, settings), indent=2))
    else:
        console = Console()
        console.print(_table(outcomes, report))
        console.print(f"CAT: {report}", highlight=False)
        console.print(f"panel: {out}", highlight=False)


def _run_pruned_once(
    pipe: StableDiffusion3Pipeline, policy: CATPolicy, draw: Callable[[], Picture], steps: int
) -> tuple[Report, int]:
    """The report of one pruned picture, and the plain steps that cost the same operations."""
    with tokenprune.apply(pipe, policy) as handle:
        draw()
        report = handle.report()
    return report, max(1, round(steps * report.mac_ratio))


def _psnr(picture: Picture, reference: Picture) -> float:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    pair = (torch.from_numpy(image.astype(np.float32)) for image in (picture, reference))
    return float(peak_signal_noise_ratio(*pair, data_range=255.0))


def _scene_score(picture: Picture, prompt: str) -> float | None:
    from tokenprune.embedded.captions import parse_caption
    from tokenprune.embedded.score import score

    scene = parse_caption(prompt)
    return None if scene is None else score(picture, scene).accuracy


def _save_panel(out: Path, prompt: str, outcomes: dict[str, Outcome], report: Report) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    dense, pruned = outcomes["dense"].picture, outcomes["CAT"].picture
    difference = np.abs(dense.astype(np.int16) - pruned.astype(np.int16)).mean(-1)
    figure, axes = plt.subplots(1, 4, figsize=(14, 4), layout="constrained")
    figure.suptitle(prompt)
    axes[0].imshow(dense)
    axes[0].set_title(f"dense, {outcomes['dense'].seconds:.2f} s")
    axes[1].imshow(pruned)
    axes[1].set_title(f"pruned, {outcomes['CAT'].seconds:.2f} s, {outcomes['CAT'].psnr:.1f} dB")
    shown = axes[2].imshow(difference, cmap="magma", vmin=0, vmax=max(1.0, float(difference.max())))
    axes[2].set_title("absolute difference (of 255)")
    figure.colorbar(shown, ax=axes[2], fraction=0.046)
    assert report.token_counts is not None
    counts = report.token_counts[0].view(report.grid).cpu().numpy()
    shown = axes[3].imshow(counts, cmap="viridis", vmin=0, vmax=len(report.steps))
    axes[3].set_title(f"times computed, of {len(report.steps)} steps")
    figure.colorbar(shown, ax=axes[3], fraction=0.046)
    for axis in axes:
        axis.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)
    plt.close(figure)


def _table(outcomes: dict[str, Outcome], report: Report) -> Table:
    dense = outcomes["dense"]
    table = Table(title="shapes-sd3: dense, pruned, and the plain model with fewer steps", box=SIMPLE_HEAD, padding=0)
    columns = ("", "seconds", "speed", "allowed", "GMACs", "tokens", "PSNR", "score", "cache")
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for outcome in outcomes.values():
        pruned = outcome.name == "CAT"
        share = report.mac_ratio if pruned else outcome.steps / dense.steps
        table.add_row(
            outcome.name,
            f"{outcome.seconds:.2f}",
            f"{dense.seconds / outcome.seconds:.2f}x",
            f"{1 / share:.2f}x",
            f"{share * report.dense_macs.total / 1e9:.1f}",
            f"{report.tokens_ratio if pruned else share:.0%}",
            "-" if outcome is dense else f"{outcome.psnr:.1f}",
            "-" if outcome.scene_score is None else f"{outcome.scene_score:.0%}",
            f"{report.cache_bytes / 2**20:.1f}M" if pruned else "-",
        )
    return table


def _as_json(outcomes: dict[str, Outcome], report: Report, panel: Path, settings: dict[str, Any]) -> dict[str, Any]:
    dense, pruned = outcomes["dense"], outcomes["CAT"]
    fewer = next(outcome for outcome in outcomes.values() if outcome not in (dense, pruned))
    return {
        "dense_seconds": dense.seconds,
        "pruned_seconds": pruned.seconds,
        "speedup": dense.seconds / pruned.seconds,
        "ideal_speedup": report.ideal_speedup,
        "mac_ratio": report.mac_ratio,
        "tokens_ratio": report.tokens_ratio,
        "psnr": pruned.psnr,
        "scene_score_dense": dense.scene_score,
        "scene_score_pruned": pruned.scene_score,
        "fewer_steps": fewer.steps,
        "fewer_steps_seconds": fewer.seconds,
        "fewer_steps_psnr": fewer.psnr,
        "scene_score_fewer_steps": fewer.scene_score,
        "selection_seconds": report.selection_seconds,
        "cache_bytes": report.cache_bytes,
        "panel": str(panel),
        "settings": settings,
    }
