"""Full, pruned and skipped steps in one plan: `python -m tokenprune.bench.studies.mixed_steps`.

The recommended plan with some of its skipped steps turned into pruned ones, and the plan itself at about as many
operations, under the settings of `other_settings` that have 28 steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenprune.bench.commands import run
from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.measuring.measure import Task, draw, generate
from tokenprune.bench.studies.other_settings import SETTINGS, STEPS, Setting, loaded, nearness, show
from tokenprune.embedded import scenes
from tokenprune.embedded.load import quiet
from tokenprune.placement import PlacedSchedule
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import best_plan
from tokenprune.policies import ErrorControlledPolicy
from tokenprune.reports.outputs import check_output
from tokenprune.reuse.corrector import Corrector
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import Step


@dataclass(frozen=True)
class MixedSchedule(PlacedSchedule):
    """Some of the skipped steps compute a fraction of the tokens.

    Args:
        alpha: that fraction.
        first: index of the first step that may be pruned.
        end: index of the first step after these.
    """

    alpha: float = 0.25
    first: int = 0
    end: int = STEPS

    @property
    def computes_parts(self) -> bool:
        """Some steps do."""
        return True

    def fraction(self, step: Step) -> float:
        """As the placed schedule's, with alpha in place of 0 at some steps."""
        return super().fraction(step) or (self.alpha if self.first <= step.index < self.end else 0.0)


def mixed(full: int, alpha: float, first: int, end: int, keys: bool = False) -> Plan:
    """The recommended plan with pruned steps."""
    schedule = MixedSchedule(full / STEPS, STEPS, alpha, first, end)
    return Plan(ErrorControlledPolicy(), schedule, Taylor(order=1, keys=keys), Corrector())


PLANS = {
    "14 full steps (the plan at a half)": best_plan(14 / STEPS),
    "16 full steps (the plan at 0.57)": best_plan(16 / STEPS),
    "12 full steps; a quarter of the tokens at others in the first half": mixed(12, 0.25, 0, 14),
    "12 full steps; a quarter of the tokens at others in the second half": mixed(12, 0.25, 14, STEPS),
    "the same, keys and values forecast": mixed(12, 0.25, 14, STEPS, keys=True),
    "12 full steps; 0.4 of the tokens at others in the last third": mixed(12, 0.4, 19, STEPS),
    "10 full steps; 0.22 of the tokens at all others": mixed(10, 0.22, 0, STEPS),
}


def compare(setting: Setting, prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """PSNR and share of the operations, by plan."""
    pipe, embedded = loaded(setting)
    task = Task(tuple(prompts), STEPS, setting.guidance_scale, len(prompts), embedded.arguments)
    reference = generate(pipe, STEPS, task, range(len(prompts)))
    found = {}
    for name, plan in PLANS.items():
        drawn = draw(pipe, Configuration(name, plan), task)
        found[name] = {"mac_ratio": drawn.mac_ratio, **nearness(drawn.pictures, reference)}
    return found


def markdown(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A table: a row for each plan, a column for each setting."""
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for name in PLANS:
        rows = [of_setting[name] for of_setting in found.values()]
        cells = (f"{row['psnr_mean']:.1f} ± {row['psnr_ci95']:.1f} at {row['mac_ratio']:.2f}" for row in rows)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    prompts: Annotated[int, typer.Option(min=2, help="Captions of the held-out split.")] = 8,
    out: Annotated[Path | None, typer.Option(help="JSON file with the PSNR of each picture.")] = None,
) -> None:
    """Print the table."""
    if out is not None:
        check_output("out", out)
    quiet()
    texts = scenes.texts("held-out", prompts)
    settings = {name: setting for name, setting in SETTINGS.items() if setting.steps == STEPS}
    found = {name: compare(setting, texts) for name, setting in settings.items()}
    show(markdown(found), found, {"prompts": prompts, "split": "held-out"}, out)


if __name__ == "__main__":
    run(main, "tokenprune.bench.studies.mixed_steps")
