"""Results of checks as tables."""

from __future__ import annotations

import pytest

from tokenprune.reports.checks import WIDTH, CheckResult, Finding

RESULT = CheckResult(
    "adapter of <Model>",
    (
        Finding("map", "passed", "3 blocks"),
        Finding("noise level", "not checked", "the model raises " + "very " * 30 + "much"),
        Finding("exit", "failed", "a & b"),
    ),
    ("the weather",),
)


def test_printed_it_is_a_table() -> None:
    lines = str(RESULT).splitlines()
    assert lines[0] == "adapter of <Model>"
    assert lines[1] == "  map          passed       3 blocks"
    assert lines[2].startswith("  noise level  not checked  the model raises very")
    assert lines[3].startswith(" " * 28 + "very")
    assert lines[-2:] == ["  not checkable:", "  - the weather"]
    assert max(map(len, lines)) <= WIDTH


def test_a_narrow_terminal_has_shorter_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = str(RESULT).splitlines()
    assert 50 < max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()).count("very") == 30


def test_in_short_and_in_a_notebook() -> None:
    assert repr(RESULT) == "CheckResult(adapter of <Model>: 1 passed, 1 not checked, 1 failed)"
    assert not RESULT.passed
    assert CheckResult("x", RESULT.findings[:2]).passed
    html = RESULT._repr_html_()
    assert "<b>adapter of &lt;Model&gt;</b>" in html
    assert "failed: a &amp; b" in html
    assert "<details><summary>not checkable</summary>" in html
    assert "details" not in CheckResult("x", RESULT.findings)._repr_html_()
