"""Prompts to find a plan on and others to report on, and a table of both: for `tune` and `calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.cli.tables import Column, Listing, show
from tokenprune.embedded.load import EMBEDDED
from tokenprune.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenprune.bench.measuring.measure import Task
    from tokenprune.bench.subjects.prompts import Prompts
    from tokenprune.bench.tuning.held_out import HeldOutRow

TUNING_CAPTIONS, HELD_OUT_CAPTIONS = 6, 16


def split_prompts(
    model: str, file: Path | None, held_out_file: Path | None, tune_on: int | None, hold_out: int | None
) -> tuple[Prompts, Prompts]:
    """The prompts to tune on and those to report on: of captions, of two files, or of the two ends of one."""
    from tokenprune.bench.subjects.prompts import captions, from_file

    if file is None:
        if held_out_file is not None or model not in EMBEDDED:
            raise ConfigurationError(f"prompts: expected a text file of prompts for {model}, got none")
        return captions("tuning", tune_on or TUNING_CAPTIONS), captions("held-out", hold_out or HELD_OUT_CAPTIONS)
    tuning = from_file(file)
    if held_out_file is not None:
        tuning, held_out = from_file(file, tune_on), from_file(held_out_file, hold_out)
    else:
        count = len(tuning.texts)
        last = hold_out or (count // 2 if tune_on is None else count - tune_on)
        first = tune_on or count - last
        if min(first, last) < 1 or first + last > count:
            wanted = f"{tune_on or 'some'} to tune on and {hold_out or 'some'} to report on"
            raise ConfigurationError(f"{file}: expected prompts to split, {wanted}, got {count}")
        held_out = replace(tuning, texts=tuning.texts[count - last :], source=f"last {tuning.source}")
        tuning = replace(tuning, texts=tuning.texts[:first], source=f"first {tuning.source}")
    if both := sorted(set(tuning.texts) & set(held_out.texts)):
        raise ConfigurationError(f"held-out prompts: expected none that is tuned on, got {both[0]!r}")
    return tuning, held_out


def described(prompts: Prompts) -> dict[str, Any]:
    """Prompts as a plan file tells of them."""
    return {"source": prompts.source, "count": len(prompts.texts), "digest": prompts.digest}


def show_rows(rows: list[HeldOutRow], title: str, task: Task, held_out: Task) -> None:
    """A table of configurations on both sets."""
    from tokenprune.bench.measuring.fidelity import in_words, psnr_summary

    sets = [f"{name}, {len(of.prompts)} prompts (dB)" for name, of in (("tuning", task), ("held-out", held_out))]
    shown = []
    for row in rows:
        psnr = (in_words(*psnr_summary(each), each.count(None), digits=2) for each in (row.tuning, row.held_out))
        shown.append([row.name, f"{row.tokens_ratio:.3f}", f"{row.mac_ratio:.3f}", *psnr])
    show(Listing(title, [Column("", left=True), *map(Column, ("tokens", "MACs", *sets))], shown))
