"""What `tokenprune demo` draws: one prompt by the plain model, pruned, by a step cache, and in fewer steps."""

from __future__ import annotations

import math
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
from tokenprune.bench.configurations.step_caches import step_caches
from tokenprune.bench.figures.canvas import decibels, difference, new_figure, save, show
from tokenprune.bench.measuring.fidelity import Picture, psnr
from tokenprune.bench.measuring.speed import speed_of
from tokenprune.embedded.captions import parse_caption
from tokenprune.embedded.load import Embedded
from tokenprune.embedded.score import score
from tokenprune.plans.plan import Plan
from tokenprune.policies import CATPolicy, DensePolicy
from tokenprune.reports.report import Report
from tokenprune.reports.viewer import Previews, Run, save_html

DENSE, CAT, PLAN, CACHE = "dense", "CAT", "plan", "step cache"
"""Names of outcomes; the fifth is called by its number of steps."""


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
    """Draw by the plain model, CAT, and at as many tokens by `tokenprune.plan`, a step cache, and in fewer steps.

    The step cache has a linear forecast, and its full steps evenly after as many at the start as serve this picture
    best. With `traced` the first three are drawn once more, untimed, for `save_page`. `begin` is told of each picture.
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

    first = draw(Configuration(DENSE), "warm-up, dense")[0]
    report = draw(Configuration(CAT, Plan(policy)), "warm-up, CAT")[2]
    if report is None:
        raise TypeError("expected a report of the pruned picture, got none")

    def nearness(configuration: Configuration) -> float:
        there = psnr(draw(configuration, configuration.name)[0], first, peak=255)
        return math.inf if there is None else there

    plans = {PLAN: tokenprune.plan(pipe, report.tokens_ratio), CAT: Plan(policy)}
    chosen = {DENSE: Configuration(DENSE), **{name: Configuration(name, plan) for name, plan in plans.items()}}
    full = max(1, int(request.steps * report.tokens_ratio + 1e-9))
    if caches := step_caches(full, request.steps):
        chosen[CACHE] = max(caches, key=nearness)
    chosen[f"{full} steps"] = plain(full)
    found: dict[str, list[tuple[Picture, float, Report | None]]] = {name: [] for name in chosen}
    for turn in range(1, request.repeats + 1):
        for name, configuration in chosen.items():
            found[name].append(draw(configuration, f"{name}, {turn} of {request.repeats}"))
    dense = found[DENSE][-1][0]
    watched = {**plans, DENSE: Plan(DensePolicy())}
    runs = {name: trace(plan, name) for name, plan in watched.items()} if traced else {}
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
    known = {DENSE: "dense", PLAN: "plan", CAT: "CAT", CACHE: "cache"}
    rows = {known.get(name, "fewer"): outcome for name, outcome in outcomes.items()}
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
    """Write the pictures side by side as a PNG, where each is off, and how often CAT computed each token.

    Raises:
        ValueError: CAT's outcome has no token counts.
    """
    from matplotlib.colors import PowerNorm

    report, dense = outcomes[CAT].report, outcomes[DENSE]
    if report is None or report.token_counts is None:
        raise ValueError("CAT: expected an outcome with a report of its tokens, got none")
    others = {name: outcome for name, outcome in outcomes.items() if name != DENSE}
    figure = new_figure(3.3 * len(outcomes), 7.4, prompt)
    above, below = figure.subplots(2, len(outcomes))
    show(above[0], dense.picture, f"dense: {dense.median:.2f} s")
    counts = report.token_counts[0].view(report.grid).cpu().numpy()
    times = show(below[0], counts, f"CAT: times computed, of {len(report.steps)} steps", cmap="viridis", vmin=0)
    figure.colorbar(times, ax=below[0], fraction=0.046)
    differences = {name: difference(dense.picture, outcome.picture) for name, outcome in others.items()}
    largest = max(1.0, *(float(each.max()) for each in differences.values()))
    colours = {"cmap": "magma", "norm": PowerNorm(0.5, 0, largest)}  # by the square root, as most are small
    for (name, outcome), picture, off in zip(others.items(), above[1:], below[1:], strict=True):
        show(picture, outcome.picture, f"{name}: {outcome.median:.2f} s, {decibels(outcome.psnr)}")
        shown = show(off, differences[name], f"{name}: difference (of 255)", **colours)
    figure.colorbar(shown, ax=list(below[1:]), fraction=0.012)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(figure, out)
