"""Result files: taken up again, refused where they are another run's, and shown as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


def row(name: str, psnr: float) -> dict[str, Any]:
    return {
        "name": name,
        "source": "s",
        "steps": 28,
        "tokens_ratio": 0.5,
        "mac_ratio": 0.55,
        "total_mac_ratio": 0.6,
        "psnr_mean": psnr,
        "psnr_ci95": 1.0,
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
        ("psnr_mean", None),
        ("psnr_mean", float("nan")),
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
    plain = markdown(Results(SETTINGS, [row("worse", 20.0), row("same", 99.0)]), by_psnr=False)
    assert plain.index("| worse |") < plain.index("| same |")
    assert "| same | 0.50 | 0.60 | - | 0.9000 | 75.0% | 50% |" in plain


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
