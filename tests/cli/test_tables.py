"""Tables that fit the screen: as they are, with heads of more lines, or as a list; nothing is cut off."""

from __future__ import annotations

import pytest
from rich.console import Console

from tokenprune.cli.tables import Column, Listing

QUALITY = Listing(
    "quality",
    [Column("", left=True), *map(Column, ("tokens", "PSNR (dB)", "scene score"))],
    [["plain, 14 steps", "0.50", "37.0 ± 1.5", "92.6%"], ["tokenprune.plan", "0.50", "55.1 ± 1.0", "95.0%"]],
    "dB: decibels",
)
PARTS = Listing(
    "parts",
    [Column("model", left=True), Column("steps"), *(Column(name, "linear") for name in ("dense", "pruned"))],
    [["SD3", "28", "1.0", "0.5"], ["SD3", "50", "2.0", "0.8"], ["PixArt", "28", "3.0", "1.5"]],
    keys=2,
)


def shown(listing: Listing, width: int) -> list[str]:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as written:
        console.print(listing.fitted(width))
    lines = [line.rstrip() for line in written.get().splitlines()]
    assert all(len(line) <= width for line in lines)
    return [line for line in lines if line]


def test_a_table_where_it_fits() -> None:
    lines = shown(QUALITY, 60)
    assert lines[1].split() == ["tokens", "PSNR", "(dB)", "scene", "score"]
    assert lines[3].split() == ["plain,", "14", "steps", "0.50", "37.0", "±", "1.5", "92.6%"]


def test_heads_of_more_lines_where_that_is_enough() -> None:
    lines = shown(QUALITY, 44)
    assert [line.split() for line in lines[1:3]] == [["PSNR", "scene"], ["tokens", "(dB)", "score"]]
    assert "37.0 ± 1.5" in lines[4]


def test_a_list_where_no_table_fits() -> None:
    assert shown(QUALITY, 36) == [
        "quality",
        "plain, 14 steps",
        "    tokens 0.50",
        "    PSNR (dB) 37.0 ± 1.5",
        "    scene score 92.6%",
        "tokenprune.plan",
        "    tokens 0.50",
        "    PSNR (dB) 55.1 ± 1.0",
        "    scene score 95.0%",
        "dB: decibels",
    ]


@pytest.mark.parametrize("width", range(20, 90))
def test_no_width_loses_a_cell(width: int) -> None:
    for listing in (QUALITY, PARTS):
        whole = " ".join(" ".join(shown(listing, width)).split())
        assert "…" not in whole
        for row in listing.rows:
            assert all(cell in whole for cell in row)


def test_groups_stand_once_above_and_repeated_keys_once() -> None:
    lines = shown(PARTS, 60)
    assert [line.split() for line in lines[1:3]] == [["linear"], ["model", "steps", "dense", "pruned"]]
    assert [line.split()[0] for line in lines[4:]] == ["SD3", "50", "PixArt"]
    assert shown(PARTS, 20)[1:5] == ["SD3, steps 28", "    linear dense 1.0", "    linear pruned", "    0.5"]
