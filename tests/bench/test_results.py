"""Result files: taken up again, refused where they are another run's, and shown as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenprune.bench.measuring.fidelity import ci95_of
from tokenprune.bench.measuring.result_file import ResultFileError, Results, load, resume
from tokenprune.bench.tables.cells import CLOCK, OVERHEADS, cells, cost_cells, failures, markdown, marks, renew
from tokenprune.bench.tables.render import PAGE, page, tables

SETTINGS = {
    "command": "tokenprune bench",
    "model": "m",
    "suite": "plane",
    "split": "held-out",
    "steps": 28,
    "guidance_scale": 7.0,
    "prompts": 2,
    "versions": {"torch": "1"},
    "machine": "a",
    "date": "2026-01-01",
}


def row(name: str, psnr: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "source": "s",
        "steps": 28,
        "tokens_ratio": 0.5,
        "mac_ratio": 0.55,
        "total_mac_ratio": 0.6,
        "psnr_mean": psnr,
        "psnr_ci95": None if psnr is None else 1.0,
        "ssim_mean": 0.9,
        "scene_score": 0.75,
        "attributes": {"colour": 0.5},
    }


def timed(name: str, psnr: float) -> dict[str, Any]:
    return {
        **row(name, psnr),
        "model": "m",
        "prompts": 2,
        "ideal_speedup": 1.6,
        "cache_bytes": 3 * 2**20,
        "seconds_per_image": 1.5,
        "seconds_per_image_spread": 0.25,
        "seconds_per_step": 0.0421,
        "seconds_per_step_spread": 0.001,
        "plain_seconds_per_image": 1.8,
        "speedup": 1.2,
        "transformer_speedup": 1.3,
        "reached": 1.3 / 1.6,
        "selection_share": 0.0123,
        "hook_overhead": 0.02,
        "peak_memory_bytes": 5 * 2**19,
    }


def failed(name: str) -> dict[str, Any]:
    return {"name": name, "source": "s", "steps": 28, "error": "TypeError: a | b `c`"}


def test_a_run_is_taken_up_again_on_another_day_and_machine(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    Results(SETTINGS, [row("a", 30.0)]).save(path)
    found = resume(path, {**SETTINGS, "date": "2027-01-01", "machine": "b"})
    assert [r["name"] for r in found.rows] == ["a"]
    assert found.row("a") is not None
    assert found.row("b") is None
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("name", ["steps", "guidance_scale", "prompts", "split", "versions"])
def test_another_runs_file_is_refused_by_what_differs(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.json"
    Results(SETTINGS, [row("a", 30.0)]).save(path)
    with pytest.raises(ResultFileError, match=f"another {name}"):
        resume(path, {**SETTINGS, name: "other"})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"settings": {}}',
        '{"settings": {}, "rows": [{"name": "a"}]}',
        '{"settings": 1, "rows": []}',
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ResultFileError, match=r"r\.json.*delete") as found:
        load(path)
    assert "\n" not in str(found.value)


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    Results(SETTINGS, [timed("a", 30.0), failed("b")]).save(path)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 3, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ResultFileError, match="no result file"):
            load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultFileError, match="no result file"):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 3),
        ("steps", "28"),
        ("steps", 0),
        ("psnr_mean", "high"),
        ("psnr_of_each", [40.0, "high"]),
        ("total_mac_ratio", -0.1),
        ("cache_bytes", 0.5),
        ("speedup", "fast"),
        ("seconds_per_step", [1.0]),
        ("attributes", {"colour": "red"}),
    ],
)
def test_a_figure_of_the_wrong_kind_is_refused_by_its_name(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "r.json"
    Results(SETTINGS, [row("a", 30.0), {**timed("b", 31.0), name: value}]).save(path)
    with pytest.raises(ResultFileError, match=rf"rows\.1\.{name}.*got.*delete"):
        load(path)


def test_rows_of_before_the_bench_timed_and_failed_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    rows = [row("old", 30.0), timed("timed", 31.0), failed("failed")]
    Results(SETTINGS, rows).save(path)
    assert load(path).rows == rows


def test_a_row_takes_the_place_of_the_one_of_its_name() -> None:
    results = Results(SETTINGS, [failed("a"), row("b", 30.0)])
    results.put(row("a", 31.0))
    results.put(row("c", 32.0))
    assert [(r["name"], r["psnr_mean"]) for r in results.rows] == [("a", 31.0), ("b", 30.0), ("c", 32.0)]


def test_what_may_differ_is_up_to_the_run(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    Results(SETTINGS, []).save(path)
    with pytest.raises(ResultFileError, match="another machine"):
        resume(path, {**SETTINGS, "date": "2027-01-01", "machine": "b"}, volatile=())


def test_tables_are_sorted_and_tell_their_source() -> None:
    table = markdown(Results(SETTINGS, [row("worse", 20.0), row("better", 30.0)]))
    assert table.index("| better |") < table.index("| worse |")
    assert "`tokenprune bench`" in table
    assert "| 0.50 | 0.60 | 30.0 ± 1.0 | 0.9000 | 75.0% |" in table
    rows = [row("worse", 20.0), row("same", None)]
    plain = markdown(Results(SETTINGS, rows), by_psnr=False)
    assert plain.index("| worse |") < plain.index("| same |")
    assert "| same | 0.50 | 0.60 | identical | 0.9000 | 75.0% | 50% |" in plain
    sorted_ = markdown(Results(SETTINGS, [failed("broken"), *rows]))
    assert sorted_.index("| same |") < sorted_.index("| worse |") < sorted_.index("| broken |")


def test_a_psnr_says_what_it_leaves_out() -> None:
    some = {**row("some", 40.0), "psnr_of_each": [None, 40.0, None], "psnr_ci95": None}
    assert "| some | s | 0.50 | 0.60 | 40.0, 2 identical | 0.9000 |" in markdown(Results(SETTINGS, [some]))


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Results(SETTINGS, [row("a", float("nan"))]).save(tmp_path / "r.json")


EACH = [40.0, 41.0, 45.0, 42.0]


def in_the_first_format(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As rows are read that a file of the first format holds."""
    path.write_text(json.dumps({"settings": {**SETTINGS, "prompts": 4}, "rows": rows}))
    return load(path).rows


def test_files_of_the_first_format_are_read_in_todays_terms(tmp_path: Path) -> None:
    path, of_four = tmp_path / "r.json", np.std(EACH, ddof=1) / 2
    old = {**row("old", 42.0), "psnr_ci95": 1.96 * of_four, "psnr_of_each": EACH, "lpips_mean": 0.1, "lpips_ci95": 0.1}
    same = {**row("same", 99.0), "psnr_ci95": 0.0, "psnr_of_each": [99.0] * 4}
    some = {**row("some", 70.5), "psnr_ci95": 32.9, "psnr_of_each": [99.0, 99.0, 40.0, 44.0]}
    bare = {**row("bare", 99.0), "psnr_ci95": 0.0}
    found = in_the_first_format(path, [old, same, some, bare, {**row("single", 40.0), "prompts": 1}, failed("failed")])
    assert found[0] == {
        **old,
        "psnr_ci95": pytest.approx(ci95_of(EACH)),
        "lpips_ci95": pytest.approx(0.1 * 3.1824 / 1.96, rel=1e-4),
    }
    assert found[1] == {**same, "psnr_mean": None, "psnr_ci95": None, "psnr_of_each": [None] * 4}
    assert found[2]["psnr_of_each"] == [None, None, 40.0, 44.0]
    assert (found[2]["psnr_mean"], found[2]["psnr_ci95"]) == (42.0, pytest.approx(2 * 12.7062, rel=1e-4))
    assert found[3]["psnr_mean"] is found[3]["psnr_ci95"] is None
    assert (found[4]["psnr_mean"], found[4]["psnr_ci95"]) == (40.0, None)
    assert found[5] == failed("failed")
    load(path).save(path)
    assert load(path).rows == found  # once is enough


COSTS = "| timed | 1.500 (0.250) | 42.1 (1.0) | 1.20 | 1.30 | 1.60 | 81% | 1.2% | +2.0% | 2.5 | 3.0 |"
TIMING = {"repeats": 3, "timing_batch": 1, "threads": 2}


def test_costs_have_a_table_of_their_own_where_they_were_measured() -> None:
    rows = [row("old", 20.0), timed("timed", 30.0)]
    assert "s/image" not in markdown(Results(SETTINGS, rows))
    table = markdown(Results({**SETTINGS, **TIMING}, rows))
    assert COSTS in table
    assert "| old | - | - | - | - | - | - | - | - | - | - |" in table
    assert "Timed in 3 pairs with the plain model, 1 picture at a time, 2 threads" in table
    columns, costs = cost_cells(Results(SETTINGS, rows))
    assert len(columns) == 11
    assert [len(line) for line in costs] == [11, 11]
    assert [line[0] for line in costs] == ["timed", "old"]
    parts = [cost_cells(Results(SETTINGS, rows), columns=part) for part in (CLOCK, OVERHEADS)]
    assert [parts[0][1][i] + parts[1][1][i][1:] for i in range(2)] == costs


@pytest.mark.parametrize("by_psnr", [True, False])
def test_an_error_stands_in_place_of_figures(by_psnr: bool) -> None:
    results = Results({**SETTINGS, **TIMING}, [failed("broken"), timed("timed", 30.0)])
    for columns, rows in (cells(results, by_psnr), cost_cells(results, by_psnr)):
        assert {len(line) for line in rows} == {len(columns)}
        (line,) = [line for line in rows if line[0] == "broken"]
        assert "TypeError" in line
        assert set(line) <= {"broken", "s", "TypeError", "-"}
    if by_psnr:
        assert cells(results)[1][-1][0] == "broken"
    assert "- `broken: TypeError: a | b 'c'`" in markdown(results, by_psnr)
    assert failures(results) == ["broken: TypeError: a | b `c`"]


def test_a_document_is_renewed_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "d.md"
    start, end = marks("r.json")
    document.write_text(f"before\n{start}old\n{end}after\n")
    for _ in range(2):
        renew(document, "r.json", "new\n")
    assert document.read_text() == f"before\n{start}new\n{end}after\n"
    with pytest.raises(ValueError, match="expected the lines"):
        renew(document, "other.json", "new\n")


DOCS = Path(__file__).parents[2] / "docs"
TABLES = tables(DOCS / "results")


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_in_docs_are_those_of_the_committed_results(name: str) -> None:
    start, end = marks(name)
    for text in (text for text in (document.read_text() for document in DOCS.glob("*.md")) if start in text):
        assert text.split(start)[1].split(end)[0] == TABLES[name]


def test_the_page_of_results_is_that_of_the_committed_files() -> None:
    assert (DOCS / PAGE).read_text() == page(DOCS / "results")


def test_there_are_committed_results_of_both_models() -> None:
    assert {name.rsplit("-", 1)[0].split("-")[1] for name in TABLES} >= {"sd3", "pixart"}
