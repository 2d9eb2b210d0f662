"""Where full steps serve best: `python -m tokenprune.bench.studies.best_places`.

For the settings of `other_settings`, the plain model draws captions of the tuning split, and the places of full steps
that leave least of the error are found (`tokenprune.bench.tuning.placing`). The table says which noise level was
reached when a tenth, two tenths, ... of the full steps were spent; the mean of the rows of shapes-sd3 is the table of
`PlacedSchedule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tokenprune.bench.commands import run
from tokenprune.bench.measuring.measure import Task, generate
from tokenprune.bench.studies.other_settings import SETTINGS, Setting, loaded, show
from tokenprune.bench.tuning.corrections import predictions_of, products_of, recorded
from tokenprune.bench.tuning.placing import nearest_places
from tokenprune.embedded import scenes
from tokenprune.embedded.load import quiet
from tokenprune.engine.sampler import Sampler
from tokenprune.placement import PlacedSchedule
from tokenprune.reports.outputs import check_output

SHARES = (0.5, 0.36, 0.25)
"""Of the steps that are full."""

TENTHS = tuple(index / 10 for index in range(1, 10))


def levels_at(full: Sequence[int], sigmas: Sequence[float], shares: Sequence[float] = TENTHS) -> list[float]:
    """The noise levels at which shares of the full steps were spent.

    Args:
        full: the full steps, by index.
        sigmas: the noise's share of the latents at each step.
        shares: 0 to 1.
    """
    spent = [index / len(full) for index in range(len(full))]
    found: list[float] = np.interp(shares, [*spent, 1.0], [*(sigmas[step] for step in full), 0.0]).tolist()
    return found


def places_of(setting: Setting, prompts: Sequence[str]) -> dict[int, list[float]]:
    """Noise levels at tenths of the full steps, by the number of full steps."""
    pipe, embedded = loaded(setting)
    task = Task(tuple(prompts), setting.steps, setting.guidance_scale, len(prompts), embedded.arguments)
    with recorded(pipe.scheduler) as plain:
        generate(pipe, task.steps, task, range(len(prompts)))
    predictions, sigmas = predictions_of(pipe, products_of(plain)), Sampler(pipe).sigmas(setting.steps)
    if predictions is None or sigmas is None:
        raise TypeError("expected a sampler that tells its steps, one call each")
    return {
        full: levels_at(nearest_places(predictions, full).full, sigmas)
        for full in (PlacedSchedule(share).affordable(setting.steps) for share in SHARES)
    }


def markdown(found: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    """A table of all settings, and the mean of those of shapes-sd3."""
    lines = ["| full steps spent | of | " + " | ".join(f"{share:.0%}" for share in TENTHS) + " |"]
    lines.append(f"|---|---|{'---|' * len(TENTHS)}")
    for name, of_setting in found.items():
        for number, (full, levels) in enumerate(of_setting.items()):
            cells = " | ".join(f"{level:.2f}" for level in levels)
            lines.append(f"| {'' if number else name} | {full} | {cells} |")
    ours = [levels for name, of in found.items() if name.startswith("shapes-sd3") for levels in of.values()]
    mean = " | ".join(f"{level:.2f}" for level in np.mean(ours, axis=0))
    return "\n".join([*lines, f"| mean of shapes-sd3 | | {mean} |"])


def main(
    prompts: Annotated[int, typer.Option(min=1, help="Captions of the tuning split.")] = 8,
    out: Annotated[Path | None, typer.Option(help="JSON file with the noise levels.")] = None,
) -> None:
    """Print the table."""
    if out is not None:
        check_output("out", out)
    quiet()
    texts = scenes.texts("tuning", prompts)
    found = {name: places_of(setting, texts) for name, setting in SETTINGS.items()}
    show(markdown(found), found, {"prompts": prompts, "split": "tuning"}, out)


if __name__ == "__main__":
    run(main, "tokenprune.bench.studies.best_places")
