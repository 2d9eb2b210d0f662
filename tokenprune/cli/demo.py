"""`tokenprune demo`: one prompt, dense and pruned, side by side, on an embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenprune.bench.commands import check_known
from tokenprune.bench.configurations.schedules import PAPER
from tokenprune.cli import options
from tokenprune.cli.progress import Progress
from tokenprune.cli.tables import Column, Listing, show
from tokenprune.embedded.load import EMBEDDED, quiet
from tokenprune.reports.outputs import check_output

if TYPE_CHECKING:
    from tokenprune.bench.studies.demo import Outcome


def demo(
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = options.PROMPT,
    model: Annotated[str, typer.Option(help=f"Embedded pipeline: {' or '.join(EMBEDDED)}.")] = "shapes-sd3-128",
    steps: Annotated[int, typer.Option(min=2, help="Steps of the sampler.")] = 28,
    alpha: Annotated[
        float, typer.Option(help="Fraction of image tokens that CAT computes at a pruned step.")
    ] = PAPER.alpha,
    warmup_steps: Annotated[int, typer.Option(help="Its full steps at the start.")] = PAPER.warmup_steps,
    guidance_scale: options.GuidanceScale = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial noise.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="Where to write the panel (PNG).")] = Path("out/demo.png"),
    html: Annotated[
        Path | None, typer.Option(help="HTML file to write a page to that shows every step; needs no server.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Draw PROMPT with an embedded model, dense, by CAT, and by `tokenprune.plan` at as many tokens.

    Beside them is what pruning has to beat, at as many tokens, too: the best of four step caches, and fewer steps.
    """
    from tokenprune.policies import CATPolicy

    check_known("model", [model], EMBEDDED)
    check_output("out", out, ".png")
    if html is not None:
        check_output("html", html, ".html")
    with options.refusing_values():
        policy = CATPolicy(alpha=alpha, warmup_steps=warmup_steps)
    from tokenprune.bench.configurations.step_caches import WARMUPS
    from tokenprune.bench.studies.demo import DENSE, Request, as_data, compare, save_page, save_panel

    quiet()
    embedded = EMBEDDED[model]
    scale = embedded.guidance_scale if guidance_scale is None else guidance_scale
    request = Request(prompt, steps, scale, seed, repeats)
    with Progress(3 + len(WARMUPS) + 5 * repeats + 3 * (html is not None)) as progress:
        outcomes = compare(embedded, policy, request, html is not None, progress.begin)
    written = {"panel": str(out)}
    save_panel(out, prompt, outcomes)
    if html is not None:
        save_page(html, prompt, outcomes)
        written["html"] = str(html)
    if as_json:
        options.print_json({**as_data(outcomes, policy, model, request), **written})
        return
    show(_listing(model, outcomes))
    for name, outcome in outcomes.items():
        if outcome.report is not None:
            print(f"{name}: {outcome.report}")
        noise = outcome.row(outcomes[DENSE])["speedup_noise"]
        if noise is not None:
            print(f"{name}: noise: {noise}")
    for name, path in written.items():
        print(f"{name}: {path}")


def _listing(model: str, outcomes: dict[str, Outcome]) -> Listing:
    from tokenprune.bench.measuring.fidelity import in_words as decibels
    from tokenprune.bench.measuring.speed import in_words
    from tokenprune.bench.studies.demo import CAT, DENSE

    dense, counted = outcomes[DENSE], outcomes[CAT].report
    heads = ("seconds", "speed", "allowed", "GMACs", "tokens", "PSNR", "score", "cache")
    rows = []
    for name, outcome in outcomes.items():
        row = outcome.row(dense)
        rows.append(
            [
                name,
                f"{outcome.median:.2f}",
                in_words(row["speedup"], row["speedup_noise"]),
                f"{1 / row['mac_ratio']:.2f}x",
                "-" if counted is None else f"{row['mac_ratio'] * counted.dense_macs.total / 1e9:.1f}",
                f"{row['tokens_ratio']:.0%}",
                decibels(outcome.psnr, None),
                "-" if outcome.scene_score is None else f"{outcome.scene_score:.0%}",
                f"{row['cache_bytes'] / 2**20:.1f}M" if outcome.report else "-",
            ]
        )
    title = f"{model}: dense, pruned, by a step cache, and in fewer steps"
    return Listing(title, [Column("", left=True), *map(Column, heads)], rows)
