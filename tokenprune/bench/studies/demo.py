"""What `tokenprune demo` draws: one prompt by the plain model, pruned, and by the plain model with fewer steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokenprune
from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.figures.canvas import decibels, difference
from tokenprune.bench.measuring.fidelity import Picture, psnr
from tokenprune.bench.measuring.speed import speed_of
from tokenprune.embedded.captions import parse_caption
from tokenprune.embedded.load import Embedded
from tokenprune.embedded.score import score
from tokenprune.plans.plan import Plan
from tokenprune.policies import CATPolicy, DensePolicy
from tokenprune.reports.report import Report
from tokenprune.reports.viewer import Previews, Run, save_html

DENSE, CAT, PLAN = "dense", "CAT", "plan"
"""Names of outcomes; the fourth is called by its number of steps."""


@dataclass(frozen=True)
class Request:
    """What to draw, and how.

    Attributes:
        prompt: text.
        steps: of the sampler, at least 2.
        guidance_scale: of classifier-free guidance.
        seed: of the initial noise.
        repeats: timed pictures of each configuration, at least 1.
    """

    prompt: str
    steps: int
    guidance_scale: float
    seed: int
    repeats: int


@dataclass(frozen=True)
class Outcome:
    """What a configuration gave.

    Attributes:
        steps: of the sampler.
        seconds: of each picture, in turns with the others.
        picture: [S, S, 3].
        psnr: to the dense picture in dB; None where it is identical.
        scene_score: share of what the prompt names that the picture shows; None where it does not read like a caption.
        report: of the handle, if pruned.
        run: the same again, with a trace and a preview of every step; None where that was not asked for.
    """

    steps: int
    seconds: tuple[float, ...]
    picture: Picture
    psnr: float | None
    scene_score: float | None
    report: Report | None
    run: Run | None = None

    @property
    def median(self) -> float:
        """Median seconds of a picture."""
        return statistics.median(self.seconds)

    def row(self, dense: Outcome) -> dict[str, Any]:
        """Its figures as plain data; those of the plain model are shares of `dense`."""
        report, share = self.report, self.steps / dense.steps
        macs = report.mac_ratio if report else share
        speed = speed_of(list(zip(dense.seconds, self.seconds, strict=True)), 1 / macs)
        return {
            "steps": self.steps,
            "seconds": self.median,
            "speedup": speed.ratio,
            "speedup_spread": speed.spread,
            "speedup_noise": None if self is dense else speed.noise,
            "mac_ratio": macs,
            "tokens_ratio": report.tokens_ratio if report else share,
            "psnr": self.psnr,
            "scene_score": self.scene_score,
            "selection_seconds": report.selection_seconds if report else 0.0,
            "cache_bytes": report.cache_bytes if report else 0,
        }


def compare(
    embedded: Embedded,
    policy: CATPolicy,
    request: Request,
    traced: bool = False,
    begin: Callable[[str], None] = lambda _: None,
) -> dict[str, Outcome]:
    """Draw by the plain model, CAT, `tokenprune.plan` at as many tokens, and in as many full steps as cost the same.

    With `traced` the first three are drawn once more, untimed, for `save_page`. `begin` is told of each picture.
    """
    pipe = embedded.load()
    pipe.set_progress_bar_config(disable=True)
    arguments = {"guidance_scale": request.guidance_scale, **embedded.arguments}

    def made(steps: int, **options: Any) -> Picture:
        generator = torch.Generator().manual_seed(request.seed)
        drawn = pipe(
            request.prompt,
            num_inference_steps=steps,
            generator=generator,
            output_type="np",
            **arguments,
            **options,
        )
        return np.asarray(drawn.images[0] * 255 + 0.5).clip(0, 255).astype(np.uint8)

    def draw(configuration: Configuration, name: str) -> tuple[Picture, float, Report | None]:
        begin(name)
        with configuration.on(pipe) as handle:
            start = time.perf_counter()
            picture = made(configuration.steps or request.steps)
            seconds = time.perf_counter() - start
            report = None if handle is None else handle.report()
        return picture, seconds, report

    def trace(plan: Plan, name: str) -> Run:
        begin(f"{name}, traced")
        previews = Previews(pipe)
        with tokenprune.apply(pipe, plan, trace=True) as handle:
            picture = made(request.steps, callback_on_step_end=previews)
        return Run(handle.trace, picture, previews.pictures)

    pruned = Configuration(CAT, Plan(policy))
    draw(plain(2), "warm-up, dense")
    report = draw(pruned, "warm-up, CAT")[2]
    if report is None:
        raise TypeError("expected a report of the pruned picture, got none")
    fewer = plain(max(1, round(request.steps * report.mac_ratio)))
    chosen = {
        DENSE: Configuration(DENSE),
        CAT: pruned,
        PLAN: Configuration(PLAN, tokenprune.plan(pipe, report.tokens_ratio)),
        f"{fewer.steps} steps": fewer,
    }
    found: dict[str, list[tuple[Picture, float, Report | None]]] = {name: [] for name in chosen}
    for turn in range(1, request.repeats + 1):
        for name, configuration in chosen.items():
            found[name].append(draw(configuration, f"{name}, {turn} of {request.repeats}"))
    dense = found[DENSE][-1][0]
    plans = {DENSE: Plan(DensePolicy()), **{name: one.plan for name, one in chosen.items() if one.plan is not None}}
    runs = {name: trace(plan, name) for name, plan in plans.items()} if traced else {}
    return {
        name: Outcome(
            steps=chosen[name].steps or request.steps,
            seconds=tuple(seconds for _, seconds, _ in drawn),
            picture=drawn[-1][0],
            psnr=psnr(drawn[-1][0], dense, peak=255),
            scene_score=scene_score(drawn[-1][0], request.prompt),
            report=drawn[-1][2],
            run=runs.get(name),
        )
        for name, drawn in found.items()
    }


def scene_score(picture: Picture, prompt: str) -> float | None:
    """Share of what a caption names that the picture shows; None for a prompt that does not read like a caption."""
    scene = parse_caption(prompt)
    return None if scene is None else score(picture, scene).accuracy


def as_data(outcomes: Mapping[str, Outcome], policy: CATPolicy, model: str, request: Request) -> dict[str, Any]:
    """Everything but the pictures, as plain data."""
    rows = {name if name in (DENSE, CAT, PLAN) else "fewer": outcome for name, outcome in outcomes.items()}
    report = outcomes[CAT].report
    settings = {
        "model": model,
        **asdict(request),
        "policy": asdict(policy),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tokens": None if report is None else report.steps[0].num_tokens,
    }
    return {**{name: outcome.row(outcomes[DENSE]) for name, outcome in rows.items()}, "settings": settings}


def save_page(out: Path, prompt: str, outcomes: Mapping[str, Outcome]) -> None:
    """Write the traced outcomes as a page: every step of each, and their pictures beside the plain model's.

    Raises:
        ConfigurationError: no outcome was traced, or the page cannot be written.
    """
    runs = {name: outcome.run for name, outcome in outcomes.items() if outcome.run is not None}
    if DENSE in runs:  # its picture is there as the plain model's; it goes last
        runs["plain model"] = replace(runs.pop(DENSE), picture=None)
    save_html(out, runs, dense=outcomes[DENSE].picture, title=prompt)


def save_panel(out: Path, prompt: str, outcomes: Mapping[str, Outcome]) -> None:
    """Write the pictures side by side as a PNG, with where the plan's is off and how often CAT computed each token.

    The plan computes all tokens equally often: its steps are full or skipped.

    Raises:
        ValueError: CAT's outcome has no token counts.
    """
    from matplotlib.figure import Figure

    dense, plan = outcomes[DENSE], outcomes[PLAN]
    report = outcomes[CAT].report
    if report is None or report.token_counts is None:
        raise ValueError("CAT: expected an outcome with a report of its tokens, got none")
    figure = Figure(figsize=(17, 3.9), dpi=80, layout="constrained")
    figure.suptitle(prompt)
    axes = figure.subplots(1, 5)
    axes[0].imshow(dense.picture)
    axes[0].set_title(f"dense, {dense.median:.2f} s")
    for axis, name in zip(axes[1:], (CAT, PLAN), strict=False):
        axis.imshow(outcomes[name].picture)
        axis.set_title(f"{name}, {outcomes[name].median:.2f} s, {decibels(outcomes[name].psnr)}")
    off = difference(dense.picture, plan.picture)
    shown = axes[3].imshow(off, cmap="magma", vmin=0, vmax=max(1.0, float(off.max())))
    axes[3].set_title("plan: absolute difference (of 255)")
    figure.colorbar(shown, ax=axes[3], fraction=0.046)
    counts = report.token_counts[0].view(report.grid).cpu().numpy()
    shown = axes[4].imshow(counts, cmap="viridis", vmin=0, vmax=len(report.steps))
    axes[4].set_title(f"CAT: times computed, of {len(report.steps)} steps")
    figure.colorbar(shown, ax=axes[4], fraction=0.046)
    for axis in axes:
        axis.set_axis_off()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
