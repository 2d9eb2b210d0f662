"""How good the embedded model is, and what pruning costs it: `python -m tokenprune.embedded.evaluate`.

Draws the scenes of a split's captions with the plain model at several numbers of steps and with pruned ones, reads the
pictures back, and writes the figures as JSON and, from that, as the tables of the model card.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import Progress

import tokenprune
from tokenprune import CATPolicy, Hold, RefreshSchedule, Reuse, Schedule, SelectionPolicy, SequentialPolicy, Taylor
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMPTY_TEXT_TOKENS, load_shapes_sd3
from tokenprune.embedded.score import score, total

Pictures = NDArray[np.uint8]
BATCH = 8
REFERENCE_STEPS = 50
MAIN_STEPS = 28
PLAIN_STEPS = (28, 20, 14, 10)


@dataclass(frozen=True)
class Configuration:
    """One way of drawing: `steps` of the sampler, pruned if there is a policy."""

    name: str
    steps: int
    policy: SelectionPolicy | None = None
    schedule: Schedule | None = None
    reuse: Reuse | None = None


PLAIN = tuple(Configuration(f"plain, {steps} steps", steps) for steps in (REFERENCE_STEPS, *PLAIN_STEPS))
PRUNED = (
    Configuration("CAT, alpha 0.3", MAIN_STEPS, CATPolicy(alpha=0.3)),
    Configuration("CAT, published constants", MAIN_STEPS, CATPolicy.published(alpha=0.3)),
    Configuration("consecutive rows, alpha 0.3", MAIN_STEPS, SequentialPolicy(alpha=0.3)),
    Configuration("every 2nd step, hold", MAIN_STEPS, CATPolicy(), RefreshSchedule(2), Hold()),
    Configuration("every 2nd step, Taylor(1)", MAIN_STEPS, CATPolicy(), RefreshSchedule(2, warmup_steps=2), Taylor(1)),
)


def main(
    prompts: Annotated[int, typer.Option(min=1, help="Captions of the split, from its first.")] = 32,
    split: Annotated[str, typer.Option(help="tuning or held-out")] = "held-out",
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 4.0,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("docs/shapes-sd3.json"),
    card: Annotated[Path | None, typer.Option(help="Model card whose tables to renew.")] = Path("docs/shapes-sd3.md"),
) -> None:
    """Evaluate shapes-sd3 and renew the tables of its card."""
    if split not in ("tuning", "held-out"):
        raise typer.BadParameter(f"split: expected 'tuning' or 'held-out', got {split!r}")
    pipe = load_shapes_sd3()
    pipe.set_progress_bar_config(disable=True)
    chosen = list(scenes.captions(split, prompts))  # type: ignore[arg-type]
    pictures: dict[str, Pictures] = {}
    rows = []
    with Progress() as progress:
        task = progress.add_task("evaluating", total=len(PLAIN) + len(PRUNED))
        for configuration in (*PLAIN, *PRUNED):
            began = time.perf_counter()
            pictures[configuration.name], mac_ratio = _draw(pipe, [c for c, _ in chosen], configuration, guidance_scale)
            seconds = time.perf_counter() - began
            rows.append(
                {
                    "name": configuration.name,
                    "steps": configuration.steps,
                    "pruned": configuration in PRUNED,
                    "mac_share": mac_ratio * configuration.steps / MAIN_STEPS,
                    "seconds_per_image": seconds / prompts,
                    "psnr_to_reference": _psnr(pictures[configuration.name], pictures[_plain(REFERENCE_STEPS)]),
                    "psnr_to_main": _psnr(pictures[configuration.name], pictures.get(_plain(MAIN_STEPS))),
                    **_scores(pictures[configuration.name], [scene for _, scene in chosen]),
                }
            )
            progress.advance(task)
    settings = {
        "command": f"python -m tokenprune.embedded.evaluate --prompts {prompts} --split {split} "
        f"--guidance-scale {guidance_scale}",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "prompts": prompts,
        "split": split,
        "guidance_scale": guidance_scale,
        "batch": BATCH,
    }
    out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    if card is not None:
        renew(card, json.loads(out.read_text()))
    print(tables(json.loads(out.read_text())))


def _plain(steps: int) -> str:
    return f"plain, {steps} steps"


def _draw(pipe: Any, prompts: list[str], way: Configuration, guidance_scale: float) -> tuple[Pictures, float]:
    """Pictures [P, S, S, 3] of all prompts, image i from seed i, and the share of the plain model's operations."""
    handle = tokenprune.apply(pipe, way.policy, schedule=way.schedule, reuse=way.reuse) if way.policy else None
    pictures = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        pictures.append(
            pipe(
                batch,
                num_inference_steps=way.steps,
                guidance_scale=guidance_scale,
                max_sequence_length=EMPTY_TEXT_TOKENS,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(batch))],
                output_type="np",
            ).images
        )
    ratio = 1.0
    if handle is not None:
        ratio = handle.report().mac_ratio
        handle.remove()
    return (np.concatenate(pictures) * 255 + 0.5).clip(0, 255).astype(np.uint8), ratio


def _psnr(pictures: Pictures, reference: Pictures | None) -> dict[str, float] | None:
    """Mean over pictures of the PSNR (dB) to the reference, with its 95 % interval; None to itself."""
    if reference is None or np.array_equal(pictures, reference):
        return None
    errors = np.square(pictures.astype(np.float64) - reference).mean((1, 2, 3))
    decibels = 10 * np.log10(255**2 / np.maximum(errors, 1e-3))
    return {"mean": float(decibels.mean()), "ci95": float(1.96 * decibels.std(ddof=1) / np.sqrt(len(decibels)))}


def _scores(pictures: Pictures, of: list[scenes.Scene]) -> dict[str, Any]:
    result = total([score(picture, scene) for picture, scene in zip(pictures, of, strict=True)])
    return {"scene_score": result.accuracy, "attributes": dict(result.per_attribute)}


def tables(results: dict[str, Any]) -> str:
    """The card's tables in Markdown."""
    settings, rows = results["settings"], results["rows"]
    attributes = list(rows[0]["attributes"])
    source = (
        f"`{settings['command']}`, {settings['date']}, {settings['machine']}, torch {settings['torch']}, diffusers "
        f"{settings['diffusers']}; {settings['prompts']} captions of the {settings['split']} split, batches of "
        f"{settings['batch']}."
    )
    lines = [
        source,
        "",
        f"| plain model | scene score | {' | '.join(attributes)} | PSNR to {REFERENCE_STEPS} steps (dB) |",
        f"|---|{'---|' * (len(attributes) + 2)}",
    ]
    for row in rows:
        if not row["pruned"]:
            shares = " | ".join(f"{row['attributes'][name]:.0%}" for name in attributes)
            psnr = _decibels(row["psnr_to_reference"])
            lines.append(f"| {row['steps']} steps | {row['scene_score']:.1%} | {shares} | {psnr} |")
    lines += [
        "",
        f"| against the plain {MAIN_STEPS} steps | share of its MACs | PSNR (dB, mean, 95 %) | scene score |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row["mac_share"] <= 1:
            psnr = _decibels(row["psnr_to_main"])
            lines.append(f"| {row['name']} | {row['mac_share']:.2f} | {psnr} | {row['scene_score']:.1%} |")
    return "\n".join(lines) + "\n"


def _decibels(psnr: dict[str, float] | None) -> str:
    return "-" if psnr is None else f"{psnr['mean']:.1f} ± {psnr['ci95']:.1f}"


START, END = "<!-- measured: start -->\n", "<!-- measured: end -->\n"


def renew(card: Path, results: dict[str, Any]) -> None:
    """Put the tables of the results between the card's two marks."""
    before, rest = card.read_text().split(START)
    card.write_text(before + START + tables(results) + END + rest.split(END)[1])


if __name__ == "__main__":
    typer.run(main)
