"""`tokenprune demo`: one prompt, dense and pruned, side by side, on the embedded model."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import tokenprune
from tokenprune.embedded.load import quiet
from tokenprune.plans.plan import Plan
from tokenprune.policies import CATPolicy
from tokenprune.reports.report import Report

Picture = NDArray[np.uint8]
Drawing = tuple[Picture, float, Report | None]
"""A picture, the seconds it took, and a pruned one's report."""

DEFAULT_PROMPT = "a large striped red circle on the left and a small blue star at the top right, on a green background"


@dataclass(frozen=True)
class Method:
    """One method of making the picture: `steps` of the sampler, pruned if there is a plan."""

    steps: int
    plan: Plan | None = None


@dataclass(frozen=True)
class Outcome:
    """What a method gave: median `seconds`, `picture` [S, S, 3], PSNR to the dense one, score, report if pruned."""

    steps: int
    seconds: float
    picture: Picture
    psnr: float
    scene_score: float | None
    report: Report | None


def demo(
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = DEFAULT_PROMPT,
    model: Annotated[str, typer.Option(help="Embedded pipeline: shapes-sd3 or shapes-pixart.")] = "shapes-sd3",
    steps: Annotated[int, typer.Option(min=2, help="Steps of the sampler.")] = 28,
    alpha: Annotated[float, typer.Option(help="Fraction of image tokens that CAT computes at a pruned step.")] = 0.3,
    warmup_steps: Annotated[int, typer.Option(help="Its full steps at the start.")] = 8,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; else the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="Where to write the panel (PNG).")] = Path("out/demo.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Draw PROMPT with an embedded model, dense, pruned by CAT, and by `tokenprune.plan` at as many tokens.

    Also runs the plain model with as many fewer steps as cost the same as CAT: what pruning has to beat.
    """
    quiet()
    from tokenprune.embedded.load import EMBEDDED

    try:
        policy = CATPolicy(alpha=alpha, warmup_steps=warmup_steps)
        if model not in EMBEDDED:
            raise ValueError(f"model: expected one of {', '.join(EMBEDDED)}, got {model!r}")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    embedded = EMBEDDED[model]
    scale = embedded.guidance_scale if guidance_scale is None else guidance_scale
    pipe = embedded.load()

    def draw(name: str, method: Method) -> Drawing:
        pipe.set_progress_bar_config(desc=f"{name:>12}", leave=False, ncols=80)
        generator = torch.Generator().manual_seed(seed)
        handle = tokenprune.apply(pipe, method.plan) if method.plan else None
        start = time.perf_counter()
        result = pipe(
            prompt,
            num_inference_steps=method.steps,
            generator=generator,
            output_type="np",
            guidance_scale=scale,
            **embedded.arguments,
        )
        seconds = time.perf_counter() - start
        report = handle.report() if handle else None
        if handle:
            handle.remove()
        return np.asarray(result.images[0] * 255 + 0.5).clip(0, 255).astype(np.uint8), seconds, report

    draw("warm-up", Method(2))
    report = draw("warm-up", Method(steps, Plan(policy)))[2]
    assert report is not None
    fewer = max(1, round(steps * report.mac_ratio))
    methods = {
        "dense": Method(steps),
        "CAT": Method(steps, Plan(policy)),
        "plan": Method(steps, tokenprune.plan(pipe, report.tokens_ratio)),
        f"{fewer} steps": Method(fewer),
    }
    outcomes = _run(methods, draw, prompt, repeats)
    _save_panel(out, prompt, outcomes)
    settings = {
        "model": model,
        "prompt": prompt,
        "steps": steps,
        "guidance_scale": scale,
        "seed": seed,
        "repeats": repeats,
        "policy": asdict(policy),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tokens": report.steps[0].num_tokens,
    }
    if as_json:
        print(json.dumps(_as_json(outcomes, out, settings), indent=2))
    else:
        Console().print(_table(model, outcomes))
        for name, outcome in outcomes.items():
            if outcome.report is not None:
                print(f"{name}: {outcome.report}")
        print(f"panel: {out}")


def _run(
    methods: dict[str, Method], draw: Callable[[str, Method], Drawing], prompt: str, repeats: int
) -> dict[str, Outcome]:
    """Draw by every method `repeats` times, taking turns."""
    made: dict[str, list[Drawing]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            made[name].append(draw(name, method))
    dense = made["dense"][-1][0]
    outcomes = {}
    for name, drawn in made.items():
        picture, _, report = drawn[-1]
        seconds = statistics.median(seconds for _, seconds, _ in drawn)
        score = _scene_score(picture, prompt)
        outcomes[name] = Outcome(methods[name].steps, seconds, picture, _psnr(picture, dense), score, report)
    return outcomes


def _psnr(picture: Picture, reference: Picture) -> float:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    pair = (torch.from_numpy(image.astype(np.float32)) for image in (picture, reference))
    return float(peak_signal_noise_ratio(*pair, data_range=255.0))


def _scene_score(picture: Picture, prompt: str) -> float | None:
    from tokenprune.embedded.captions import parse_caption
    from tokenprune.embedded.score import score

    scene = parse_caption(prompt)
    return None if scene is None else score(picture, scene).accuracy


def _save_panel(out: Path, prompt: str, outcomes: dict[str, Outcome]) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    dense, report = outcomes["dense"].picture, outcomes["plan"].report
    assert report is not None
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.9), layout="constrained")
    figure.suptitle(prompt)
    axes[0].imshow(dense)
    axes[0].set_title(f"dense, {outcomes['dense'].seconds:.2f} s")
    for axis, name in zip(axes[1:], ("CAT", "plan"), strict=False):
        axis.imshow(outcomes[name].picture)
        axis.set_title(f"{name}, {outcomes[name].seconds:.2f} s, {outcomes[name].psnr:.1f} dB")
    difference = np.abs(dense.astype(np.int16) - outcomes["plan"].picture.astype(np.int16)).mean(-1)
    shown = axes[3].imshow(difference, cmap="magma", vmin=0, vmax=max(1.0, float(difference.max())))
    axes[3].set_title("plan: absolute difference (of 255)")
    figure.colorbar(shown, ax=axes[3], fraction=0.046)
    assert report.token_counts is not None
    counts = report.token_counts[0].view(report.grid).cpu().numpy()
    shown = axes[4].imshow(counts, cmap="viridis", vmin=0, vmax=len(report.steps))
    axes[4].set_title(f"plan: times computed, of {len(report.steps)} steps")
    figure.colorbar(shown, ax=axes[4], fraction=0.046)
    for axis in axes:
        axis.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)
    plt.close(figure)


def _table(model: str, outcomes: dict[str, Outcome]) -> Table:
    dense, counted = outcomes["dense"], outcomes["CAT"].report
    assert counted is not None
    table = Table(title=f"{model}: dense, pruned, and the plain model with fewer steps", box=SIMPLE_HEAD, padding=0)
    columns = ("", "seconds", "speed", "allowed", "GMACs", "tokens", "PSNR", "score", "cache")
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, outcome in outcomes.items():
        report = outcome.report
        share = report.mac_ratio if report else outcome.steps / dense.steps
        table.add_row(
            name,
            f"{outcome.seconds:.2f}",
            f"{dense.seconds / outcome.seconds:.2f}x",
            f"{1 / share:.2f}x",
            f"{share * counted.dense_macs.total / 1e9:.1f}",
            f"{report.tokens_ratio if report else share:.0%}",
            "-" if outcome is dense else f"{outcome.psnr:.1f}",
            "-" if outcome.scene_score is None else f"{outcome.scene_score:.0%}",
            f"{report.cache_bytes / 2**20:.1f}M" if report else "-",
        )
    return table


def _as_json(outcomes: dict[str, Outcome], panel: Path, settings: dict[str, Any]) -> dict[str, Any]:
    dense = outcomes["dense"]
    rows = {}
    for name, outcome in outcomes.items():
        report = outcome.report
        rows["fewer" if name.endswith("steps") else name] = {
            "steps": outcome.steps,
            "seconds": outcome.seconds,
            "speedup": dense.seconds / outcome.seconds,
            "mac_ratio": report.mac_ratio if report else outcome.steps / dense.steps,
            "tokens_ratio": report.tokens_ratio if report else outcome.steps / dense.steps,
            "psnr": None if outcome is dense else outcome.psnr,
            "scene_score": outcome.scene_score,
            "selection_seconds": report.selection_seconds if report else 0.0,
            "cache_bytes": report.cache_bytes if report else 0,
        }
    return {**rows, "panel": str(panel), "settings": settings}
