"""What a tuned plan is worth on prompts that it was not tuned on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.measuring.fidelity import (
    Pictures,
    ci95_of,
    comparable,
    in_words,
    mean_of,
    psnr_of_each,
    psnr_summary,
)
from tokenprune.bench.measuring.measure import Task, draw, draw_all
from tokenprune.bench.measuring.run import stamp
from tokenprune.bench.tuning.search import Found, Tried
from tokenprune.bench.tuning.space import OURS
from tokenprune.plans.files import mapping_of

TUNED = "tuned"


@dataclass(frozen=True)
class HeldOutRow:
    """One configuration on both sets of prompts.

    Attributes:
        name: "tuned", a preset's, or the plain model's number of steps.
        tokens_ratio: share of the plain model's token computations, on the held-out prompts.
        mac_ratio: share of its multiply-accumulates.
        tuning: PSNR of each picture of the tuning prompts to the plain model's, in dB; None where identical.
        held_out: the same of the held-out prompts.
    """

    name: str
    tokens_ratio: float
    mac_ratio: float
    tuning: list[float | None]
    held_out: list[float | None]

    @property
    def notes(self) -> dict[str, Any]:
        """Its figures, for a plan file."""
        (tuning, _), (held_out, ci95) = psnr_summary(self.tuning), psnr_summary(self.held_out)
        psnr = {"psnr_tuning": tuning, "psnr_held_out": held_out, "psnr_held_out_ci95": ci95}
        return {
            "tokens_ratio": round(self.tokens_ratio, 4),
            "mac_ratio": round(self.mac_ratio, 4),
            **{name: None if value is None else round(value, 3) for name, value in psnr.items()},
        }


@dataclass(frozen=True)
class Verdict:
    """The tuned plan against the best preset on the held-out prompts.

    Attributes:
        rival: the better of the preset that was best on the tuning prompts and of `tokenprune.plan`, as it does on the
            held-out ones; None where the tuned plan is a preset.
        gain: mean PSNR of the tuned plan above the rival's, in dB.
        ci95: half the width of its 95 % interval, over pictures of the same prompt and seed; None of a single picture.
        text: what that means, in a sentence or two.
    """

    rival: Tried | None
    gain: float
    ci95: float | None
    text: str


def contenders(found: Found) -> list[Tried]:
    """The tuned plan, the preset that was best on the tuning prompts, and `tokenprune.plan`; each once."""
    wanted = [found.best, *found.presets[:1], *(preset for preset in found.presets if preset.name == OURS)]
    return list({tried.name: tried for tried in wanted}.values())


def compare(
    pipe: Any,
    found: Found,
    tuning: Task,
    held_out: Task,
    begin: Callable[[str], None] | None = None,
) -> list[HeldOutRow]:
    """Draw the contenders and the plain model with as many fewer steps on the held-out prompts; the tuned plan first.

    Args:
        pipe: the pipeline of the search; left as it was.
        found: what the search came to.
        tuning: its task.
        held_out: other prompts, all else as in `tuning`.
        begin: told of each before it is drawn.
    """
    begin = begin or (lambda _: None)
    begin("plain")
    dense = draw_all(pipe, held_out.steps, held_out)
    rows = []
    for tried in contenders(found):
        name = TUNED if tried.name == found.best.name else tried.name
        begin(name)
        drawn = draw(pipe, Configuration(name, tried.plan), held_out)
        psnr = psnr_of_each(drawn.pictures, dense)
        rows.append(HeldOutRow(name, drawn.tokens_ratio or tried.tokens_ratio, drawn.mac_ratio, tried.psnr, psnr))
    fewer = plain(max(1, round(found.budget * held_out.steps)))
    begin(fewer.name)
    return [*rows, plain_row(pipe, fewer, [(tuning, found.dense), (held_out, dense)])]


def plain_row(pipe: Any, fewer: Configuration, sets: Sequence[tuple[Task, Pictures]]) -> HeldOutRow:
    """The plain model with fewer steps, on the tuning prompts and on the held-out ones."""
    steps = fewer.steps or 1
    psnr = [psnr_of_each(draw_all(pipe, steps, task), dense) for task, dense in sets]
    share = steps / sets[0][0].steps
    return HeldOutRow(fewer.name, share, share, *psnr)


def judge(found: Found, rows: list[HeldOutRow]) -> Verdict:
    """The tuned plan against the best preset, on the held-out prompts of the rows."""
    held_out = {row.name: comparable(row.held_out, found.dense) for row in rows}
    rivals = [tried for tried in contenders(found) if tried.name != found.best.name]
    if found.best.name in {preset.name for preset in found.presets}:
        text = f"No plan was better than the preset {found.best.name!r} on the tuning prompts: that is the tuned plan."
        return Verdict(None, 0.0, None, text)
    rival = max(rivals, key=lambda tried: mean_of(held_out[tried.name]), default=None)
    if rival is None:
        return Verdict(None, 0.0, None, "The budget allows no preset to compare the tuned plan with.")
    pairs = zip(held_out[TUNED], held_out[rival.name], strict=True)
    gains = [ours - theirs for ours, theirs in pairs]
    gain, ci95 = mean_of(gains), ci95_of(gains)
    by = f"{in_words(abs(gain), ci95, digits=2)} dB"
    if gain < 0:
        text = (
            f"WORSE on held-out prompts: the tuned plan is {by} below the preset {rival.name!r}, which may serve "
            "you better; tune on more prompts, or use the preset."
        )
    else:
        text = f"On held-out prompts the tuned plan is {by} above the best preset, {rival.name!r}."
        if ci95 is None:
            text += " That may be chance: it is a single picture."
        elif gain <= ci95:
            text += " That may be chance: the interval reaches 0."
    return Verdict(rival, gain, ci95, text)


def notes(found: Found, rows: list[HeldOutRow], verdict: Verdict, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan file says beside the plan: how it was found, what it is worth, and the preset to use instead.

    Args:
        found: what the search came to.
        rows: from `compare`, the tuned plan first.
        verdict: from `judge`.
        settings: of the run, plain data.
    """
    preset = {} if verdict.rival is None else {"name": verdict.rival.name, "plan": mapping_of(verdict.rival.plan)}
    return {
        **settings,
        "found_as": found.best.name,
        "trials": {"presets": len(found.presets), "others": found.trials, "stopped_early": found.stopped},
        "failed": found.failed,
        **rows[0].notes,
        "others": {row.name: row.notes for row in rows[1:]},
        "verdict": verdict.text,
        "best_preset": preset,
        **stamp(),
    }
