"""Fitting the recommended plan to a model: how it corrects, and where its full steps lie.

The plan draws some prompts with one way of correcting after the other: the multiples that `corrections.measured` finds,
and some fixed answers of the predictions. The way that comes nearest to the plain model is kept, and with it the full
steps are laid elsewhere. Other prompts then show whether that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.measuring.fidelity import Pictures, ci95_of, comparable, mean_of, psnr_of_each
from tokenprune.bench.measuring.measure import Task, draw, draw_all
from tokenprune.bench.tuning.corrections import measured
from tokenprune.bench.tuning.held_out import HeldOutRow, plain_row
from tokenprune.bench.tuning.placing import Predictions, nearest_places
from tokenprune.engine.sampler import predicts
from tokenprune.placement import EvenSchedule, PlacedSchedule
from tokenprune.plans.plan import Plan
from tokenprune.reuse.corrector import Corrector
from tokenprune.schedule import Predicts, Schedule

AS_IT_WAS, CALIBRATED = "as it was", "calibrated"
"""Names of the plans in tables."""

RESPONSES = (0, 6, 12, 24)
"""Fixed responses (`Corrector`) to try."""

FIRST = (0.0, 0.07, 0.15, 0.3)
"""Shares of a generation's steps to try as full ones at its start, with the others spread evenly."""


class Contest:
    """Plans that draw the same prompts, one after the other.

    Args:
        pipe: the pipeline; left as it was.
        task: what to draw.
        dense: the plain model's pictures of it.
        plan: the first that draws.

    Attributes:
        dense: as above.
        plan: the one that came nearest to the plain model so far.
        name: what is different from the first one, in words.
        psnr: of each picture, in dB, of all plans by name; None where it is the plain model's.
    """

    def __init__(self, pipe: Any, task: Task, dense: Pictures, plan: Plan) -> None:
        self._pipe, self._task, self.dense = pipe, task, dense
        self.plan, self.name = plan, AS_IT_WAS
        self.psnr = {AS_IT_WAS: self._draw(plan)}

    @property
    def tried(self) -> dict[str, float]:
        """Mean PSNR of all plans, in dB, by name."""
        return {name: mean_of(comparable(psnr, self.dense)) for name, psnr in self.psnr.items()}

    def enter(self, variants: Mapping[str, Plan]) -> None:
        """Let variants of the nearest plan so far draw; names say what is different from that one."""
        before = "" if self.name == AS_IT_WAS else f"{self.name}, "
        found = {before + name: plan for name, plan in variants.items()}
        self.psnr |= {name: self._draw(plan) for name, plan in found.items()}
        tried = self.tried
        nearest = max((self.name, *found), key=tried.__getitem__)
        self.plan, self.name = found.get(nearest, self.plan), nearest

    def _draw(self, plan: Plan) -> list[float | None]:
        return psnr_of_each(draw(self._pipe, Configuration("", plan), self._task).pictures, self.dense)


def fit(pipe: Any, plan: Plan, task: Task, begin: Callable[[str], None] | None = None) -> Contest:
    """The nearest of a plan's variants: first of its corrections, then of the places of its full steps.

    Args:
        pipe: a pipeline whose sampler gets its predictions in the shape of its latents; left as it was.
        plan: with a corrector.
        task: what to draw.
        begin: told what is done next.

    Raises:
        ConfigurationError: as `measured`.
    """
    begin = begin or (lambda _: None)
    begin("measuring")
    found = measured(pipe, plan, task)
    begin("corrections")
    contest = Contest(pipe, task, found.dense, plan)
    contest.enter(corrections(plan, found.plan, predicts(pipe.scheduler)))
    begin("full steps")
    contest.enter(places(contest.plan, found.plain))
    return contest


def corrections(plan: Plan, with_profile: Plan | None, meaning: Predicts | None) -> dict[str, Plan]:
    """Other ways to correct, in words."""
    found = {} if with_profile is None else {"measured answers": with_profile}
    for response in RESPONSES if meaning else ():
        found[f"response {response:g}"] = replace(plan, corrector=Corrector(response=response))
    return found


def places(plan: Plan, plain: Predictions | None) -> dict[str, Plan]:
    """Other places of full steps, in words; none where they are not those of the recommended plan."""
    if not isinstance(plan.schedule, PlacedSchedule):
        return {}
    budget, steps = plan.schedule.budget, plan.schedule.steps
    schedules: dict[str, Schedule] = {
        f"{first:g} of the steps first": EvenSchedule(budget, first, steps) for first in FIRST if first < budget
    }
    if plain is not None:
        full = plan.schedule.affordable(len(plain.times))
        schedules["full steps where the plain model asks for them"] = nearest_places(plain, full)
    return {name: replace(plan, schedule=schedule) for name, schedule in schedules.items()}


@dataclass(frozen=True)
class Calibration:
    """What fitting a plan came to.

    Attributes:
        plan: the fitted plan if it won, else the plan as it was.
        won: whether it was nearer to the plain model on both sets of prompts.
        changes: what is different in the fitted plan, in words.
        tried: mean PSNR on the first set, in dB, of all plans that were tried, by what is different.
        rows: the plan as it was, calibrated, and the plain model with as many fewer steps, on both sets of prompts.
        text: what it won, in a sentence or two.
    """

    plan: Plan
    won: bool
    changes: str
    tried: Mapping[str, float]
    rows: list[HeldOutRow]
    text: str


def calibrate(
    pipe: Any, plan: Plan, tuning: Task, held_out: Task, begin: Callable[[str], None] | None = None
) -> Calibration:
    """Fit a plan to some prompts, draw others, and keep what was found only if it won on both sets.

    Args:
        pipe: the pipeline; left as it was.
        plan: with a corrector.
        tuning: the prompts to fit to.
        held_out: other prompts, all else as in `tuning`.
        begin: told what is done next.

    Raises:
        ConfigurationError: as `measured`.
    """
    begin = begin or (lambda _: None)
    found = fit(pipe, plan, tuning, begin)
    begin("plain")
    dense = draw_all(pipe, held_out.steps, held_out)
    rows = []
    for name, each, psnr in ((AS_IT_WAS, plan, AS_IT_WAS), (CALIBRATED, found.plan, found.name)):
        begin(name)
        drawn = draw(pipe, Configuration(name, each), held_out)
        held = psnr_of_each(drawn.pictures, dense)
        rows.append(HeldOutRow(name, drawn.tokens_ratio or 0.0, drawn.mac_ratio, found.psnr[psnr], held))
    gains = []
    for before, after in ((rows[0].tuning, rows[1].tuning), (rows[0].held_out, rows[1].held_out)):
        pairs = zip(comparable(before, dense), comparable(after, dense), strict=True)
        gains.append([new - old for old, new in pairs])
    fewer = plain(max(1, round(rows[0].mac_ratio * held_out.steps)))
    begin(fewer.name)
    rows.append(plain_row(pipe, fewer, [(tuning, found.dense), (held_out, dense)]))
    won = all(mean_of(gain) > 0 for gain in gains)
    return Calibration(
        found.plan if won else plan, won, found.name, found.tried, rows, _in_words(won, found.name, *gains)
    )


def _in_words(won: bool, changes: str, tuning: list[float], held_out: list[float]) -> str:
    if changes == AS_IT_WAS:
        return "Calibration found nothing better: the file holds the plan as it was."
    gain, ci95 = mean_of(held_out), ci95_of(held_out)
    on_both = f"{changes}: {mean_of(tuning):+.2f} dB on the prompts it was fitted to, {gain:+.2f}"
    on_both += f" {'' if ci95 is None else f'± {ci95:.2f} '}dB on held-out ones"
    if not won:
        return f"Calibration did not help ({on_both}): the file holds the plan as it was."
    chance = "" if ci95 is not None and gain > ci95 else " That may be chance: the interval reaches 0."
    return f"Calibration helped ({on_both}).{chance}"
