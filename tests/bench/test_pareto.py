"""The Pareto plot: which rows are on the front, which points are drawn, and what is said of the rest."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tokenprune.bench.measuring.result_file import Results, load
from tokenprune.bench.tables.pareto import FEW, KINDS, PLAIN, figure, front, kind_of, plot

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def row(name: str, source: str, macs: float, psnr: float | None, seconds: float | None = None) -> dict[str, Any]:
    timed = {} if seconds is None else {"seconds_per_image": seconds, "plain_seconds_per_image": 2.0}
    plan = None if name.startswith("plain") else "Plan()"
    fidelity = {"psnr_mean": psnr, "psnr_ci95": None if psnr is None else 1.5}
    return {"name": name, "source": source, "total_mac_ratio": macs, **fidelity, "steps": 28, "plan": plan, **timed}


SETTINGS = {
    "command": "tokenprune bench --suite own",
    "model": "shapes-sd3",
    "prompts": 64,
    "steps": 28,
    "guidance_scale": 7.0,
    "machine": "a machine",
    "date": "2026-01-01",
}
ROWS = [
    row("plain, 28 steps", "", 1.0, None, 2.0),
    row("plain, 14 steps", "", 0.5, 37.0, 1.0),
    row("plain, 7 steps", "", 0.25, 30.0, 0.5),
    row("ours", "ours", 0.5, 55.0, 1.2),
    row("theirs", "cache-dit, x: defaults", 0.6, 50.0, 1.1),
    row("never skips", "diffusers, x: defaults", 1.0, None, 2.1),
    {"name": "broken", "source": "diffusers, x: defaults", "steps": 28, "error": "TypeError: no"},
]


def texts(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_the_front_has_the_rows_that_nothing_cheaper_beats() -> None:
    points = [
        row("a", "", 0.5, 40.0),
        row("beaten at its own cost", "", 0.5, 39.0),
        row("b", "", 0.6, 41.0),
        row("dearer and no nearer", "", 0.7, 41.0),
        row("c", "", 0.2, 10.0),
    ]
    assert [each["name"] for each in front(points, "total_mac_ratio")] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("name", "source", "label"),
    [
        ("plain, 14 steps", "", "plain model, fewer steps"),
        ("a plan of a user's file", "", "others"),
        ("tokenprune.plan", "ours", "ours"),
        ("AT-EDM x age", "ours, after arXiv 2405.05252", "ours"),
        ("noise", "arXiv 2502.00433, Fig. 4", "CAT and its ablations"),
        ("evenly", "step cache after arXiv 2503.06923", "step caches"),
        ("RAS", "re-implementation of arXiv 2502.10389", "re-implementations"),
        ("MagCache", "diffusers, arXiv 2506.09045: defaults", "other packages"),
        ("DBCache", "cache-dit, github.com/vipshop/cache-dit: Fn=1", "other packages"),
        ("random", "baseline", "others"),
    ],
)
def test_the_source_tells_the_kind(name: str, source: str, label: str) -> None:
    assert kind_of(row(name, source, 0.5, 40.0)).label == label


def test_kinds_differ_in_colour_and_in_shape() -> None:
    assert len({kind.colour for kind in KINDS}) == len({kind.marker for kind in KINDS}) == len(KINDS)


def test_both_costs_are_drawn_where_they_were_measured() -> None:
    drawn = figure(Results(SETTINGS, ROWS))
    seconds, macs = drawn.axes
    assert drawn.get_suptitle() == "shapes-sd3: 64 prompts, 28 steps, guidance 7.0"
    for axis, unit, costs, plain in (
        (seconds, "seconds", [0.5, 1.0, 1.2, 1.1], 2.0),
        (macs, "share of the plain model's", [0.25, 0.5, 0.5, 0.6], 1.0),
    ):
        assert unit in axis.get_xlabel()
        points = {container.get_label(): container for container in axis.containers}
        assert [*points] == [PLAIN.label, "ours", "other packages"]
        assert [x for each in points.values() for x in each.lines[0].get_xdata()] == costs
        assert points[PLAIN.label].lines[0].get_linestyle() == "-"
        assert points["ours"].lines[0].get_linestyle() == "None"
        ((low, high),) = ([end[1] for end in line] for line in points["ours"].lines[2][0].get_segments())
        assert (low, high) == (53.5, 56.5)
        (reference,) = [line for line in axis.lines if line.get_label() == "plain model, all steps"]
        assert list(reference.get_xdata()) == [plain, plain]
    assert "(dB" in seconds.get_ylabel()
    for axis in (macs, seconds):  # of few points all are named
        assert sorted(texts(axis)) == sorted(["28 steps", "28 steps", "ours", "theirs"])


def test_of_many_points_those_on_the_front_are_named() -> None:
    beaten = [row(f"beaten {i}", "ours", 0.6 + i / 100, 40.0) for i in range(FEW)]
    (axis,) = figure(Results(SETTINGS, [row("best", "ours", 0.5, 50.0), *beaten])).axes
    assert texts(axis) == ["best"]


def test_what_is_not_drawn_is_named_below_with_the_source() -> None:
    note = " ".join(figure(Results(SETTINGS, ROWS)).get_supxlabel().split())
    assert note.startswith("tokenprune bench --suite own. a machine, 2026-01-01.")
    assert "identical to the plain model, not drawn: never skips" in note
    assert note.endswith("failed, not drawn: broken")
    assert "plain, 28 steps" not in note
    assert "not drawn" not in figure(Results(SETTINGS, ROWS[:4])).get_supxlabel()


def test_a_point_of_a_single_picture_has_no_interval() -> None:
    (axis,) = figure(Results(SETTINGS, [{**row("one", "ours", 0.5, 40.0), "psnr_ci95": None}])).axes
    assert list(axis.containers[0].lines[0].get_ydata()) == [40.0]
    assert [len(segment) for segment in axis.containers[0].lines[2][0].get_segments()] == [0]


def boxes(axis: Any) -> list[Bbox]:
    """Where the names are; without the lines that lead to some."""
    return [Text.get_window_extent(text) for text in axis.texts]


@pytest.mark.parametrize("many", [4, 10])
def test_names_cover_no_other_name_and_stay_inside(many: int) -> None:
    near = [row(f"near {i}", "ours", 0.5 + i / 500, 50 + i / 50) for i in range(many)]
    ends = [row("low", "ours", 0.2, 30.0), row("high at the right end of all", "ours", 0.9, 80.0)]
    drawn = figure(Results(SETTINGS, [*ends, *near]))
    (axis,) = drawn.axes
    drawn.draw_without_rendering()
    assert sorted(texts(axis)) == sorted(each["name"] for each in (*ends, *near))
    found, frame = boxes(axis), axis.get_window_extent()
    assert not any(one.overlaps(other) for one, other in combinations(found, 2))
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in found)
    points = axis.transData.transform([(each["total_mac_ratio"], each["psnr_mean"]) for each in (*ends, *near)])
    assert not any(box.contains(*point) for box in found for point in points)


def test_names_without_room_are_told_below() -> None:
    crowd = [
        row(f"a rather long name, which takes up all the room there is: {i}", "ours", 0.5, 50.0) for i in range(16)
    ]
    drawn = figure(Results(SETTINGS, crowd))
    (axis,) = drawn.axes
    left_out = drawn.get_supxlabel().partition("No room for the names of: ")[2].split("; ")
    assert 0 < len(texts(axis)) < 16
    assert sorted([*texts(axis), *left_out]) == sorted(each["name"] for each in crowd)


@pytest.mark.parametrize("rows", [[], ROWS[-1:], ROWS[:1]])
def test_without_anything_to_draw_the_plot_is_empty(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plot(Results(SETTINGS, rows), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_committed_results_without_timing_give_one_panel(tmp_path: Path) -> None:
    results = load(RESULTS / "shapes-sd3-plane-0.5.json")
    (axis,) = figure(results).axes
    drawn = sum(len(container.lines[0].get_xdata()) for container in axis.containers)
    assert drawn == len(results.rows) - 1 == 46
    assert "tokenprune.plan, skips=False" in texts(axis)
    assert len(texts(axis)) < 15
    plot(results, tmp_path / "p.png")
    height, width, _ = imread(tmp_path / "p.png").shape
    assert width > height > 500
