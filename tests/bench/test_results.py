"""Result files: taken up again, refused where they are another run's, and shown as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenprune.bench.render import tables
from tokenprune.bench.results import ResultFileError, Results, load, resume
from tokenprune.bench.tables import markdown, marks, renew

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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": {}}', '{"settings": {}, "rows": [{"name": "a"}]}'])
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ResultFileError, match=r"r\.json.*delete"):
        load(path)


def test_tables_are_sorted_and_tell_their_source() -> None:
    table = markdown(Results(SETTINGS, [row("worse", 20.0), row("better", 30.0)]))
    assert table.index("| better |") < table.index("| worse |")
    assert "`tokenprune bench`" in table
    assert "| 0.50 | 0.60 | 30.0 ± 1.0 | 0.9000 | 75.0% |" in table
    plain = markdown(Results(SETTINGS, [row("worse", 20.0), row("same", 99.0)]), by_psnr=False)
    assert plain.index("| worse |") < plain.index("| same |")
    assert "| same | 0.50 | 0.60 | - | 0.9000 | 75.0% | 50% |" in plain


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
    shown = [text for text in (page.read_text() for page in DOCS.glob("*.md")) if start in text]
    assert shown, f"no page shows {name}"
    for text in shown:
        assert text.split(start)[1].split(end)[0] == TABLES[name]


def test_there_are_committed_results_of_both_models() -> None:
    assert {name.rsplit("-", 1)[0].split("-")[1] for name in TABLES} >= {"sd3", "pixart"}
