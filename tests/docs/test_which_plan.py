"""The chooser: its numbers are those of the tables of docs/analysis.md that it links to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tokenprune

DOCS = Path(tokenprune.__file__).parents[1] / "docs"
PAGE, ANALYSIS = (DOCS / "which-plan.md").read_text(), (DOCS / "analysis.md").read_text()
SHORT = ANALYSIS.split("## In short")[1].split("\n## ")[0]
SETTINGS = ANALYSIS.split("## Other guidance, noise schedules and samplers")[1].split("\n## ")[0]


def means(row: str) -> list[float]:
    return [float(mean) for mean in re.findall(r"(\d+\.\d) ±", row)]


def row_of(text: str, name: str) -> list[float]:
    """The means of the first row of that name."""
    (found, *_) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return means(found)


def test_the_table_by_goal_has_the_means_of_all_models() -> None:
    found = re.findall(r"\[(\d+\.\d), (\d+\.\d) and (\d+\.\d) dB\]\(analysis\.md#[\w-]+\)", PAGE)
    assert len(found) == 3
    presets = ANALYSIS.split("## The presets")[1].split("\n## ")[0]
    for name, named in zip(("balanced", "quality", "fast"), found, strict=True):
        rows = [means(line) for line in presets.splitlines() if line.startswith(f"| tokenprune.plan, {name} |")]
        assert [float(each) for each in named] == [row[0] for row in rows]


def test_the_distance_to_step_caches() -> None:
    plan, cache = row_of(SHORT, "`tokenprune.plan`"), row_of(SHORT, "best step cache")
    first, second, third = (f"{ours - theirs:.1f}" for ours, theirs in zip(plan, cache, strict=True))
    assert f"28 steps: {first}, {second} and {third} dB above the best step cache" in PAGE


@pytest.mark.parametrize("steps", [20, 14, 8, 4])
def test_the_table_by_steps(steps: int) -> None:
    results = json.loads((DOCS / "results" / f"shapes-sd3-presets-{steps}-steps.json").read_text())
    psnr = {row["name"]: f"{row['psnr_mean']:.1f} dB" for row in results["rows"]}
    plan, fewer = psnr["tokenprune.plan, balanced"], psnr[f"plain, {steps // 2} steps"]
    assert f"{steps} steps: {plan}, and {fewer} with {steps // 2} plain steps" in PAGE


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("shapes-sd3, guidance 7, shift 1.5, Euler | 14", "by [{} dB at guidance 7 and"),
        ("shapes-sd3, guidance 4, shift 3, Euler | 14", "and {} dB at guidance 4]"),
        ("shapes-pixart, guidance 3, DDIM | 14", "by [{} dB at half of the steps]"),
        ("shapes-pixart, guidance 3, DPM++ 2M | 14", "ahead, by [{} dB](analysis.md"),
    ],
)
def test_the_distances_by_sampler(setting: str, text: str) -> None:
    plan, _, cache, _ = row_of(SETTINGS, setting)
    assert text.format(f"{plan - cache:.1f}") in PAGE


def test_at_strong_and_weak_guidance() -> None:
    plan, _, cache, _ = row_of(SETTINGS, "shapes-sd3, guidance 12, shift 3, Euler | 14")
    assert f"at guidance 12 | ahead, by [{plan - cache:.1f} dB]" in PAGE
    plan, _, cache, _ = row_of(SETTINGS.split("| shapes-pixart, guidance 3, DPM++ 2M | 14 |")[1], " | 7")
    assert f"DPM++ 2M, a quarter of the steps | ahead, by [{plan - cache:.1f} dB]" in PAGE
    for guidance, shift in ((2, 3), (4, 1.5)):
        plan, _, cache, _ = row_of(SETTINGS, f"shapes-flux, guidance {guidance} learnt, shift {shift}, Euler | 14")
        assert f"guidance {guidance} | ahead, by [{plan - cache:.1f} dB at half of the steps]" in PAGE


def test_samplers_that_were_not_looked_at() -> None:
    for name, sampler in (
        ("shapes-sd3, guidance 5, shift 3, Heun, 16 steps | 16", "Heun's method"),
        ("shapes-pixart, guidance 7, DDIM, 24 steps | 12", "PixArt at guidance 7, DDIM, 24 steps"),
    ):
        plan, _, cache, _ = row_of(ANALYSIS, name)
        assert re.search(rf"\| {sampler} \| ahead, by \[{plan - cache:.1f} dB at half of the", PAGE)
    plan, _, cache, fewer = row_of(ANALYSIS, "shapes-pixart, guidance 4, UniPC, 30 steps | 15")
    assert max(abs(plan - cache), abs(plan - fewer)) < 1
    assert "| UniPC | level with a step cache and with fewer steps at [half of the steps]" in PAGE
