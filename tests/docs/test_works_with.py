"""The page of what works together: every situation names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tokenprune

ROOT = Path(tokenprune.__file__).parents[1]
PAGE = (ROOT / "docs" / "works-with.md").read_text()
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE)))


def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def rows() -> list[list[str]]:
    """The cells of all tables that say what shows a situation."""
    tables = re.findall(r"^\| Situation \| What happens \| Shown by \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.M)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for table in tables for row in table.splitlines()]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_tests_that_it_names_are_there(path: str, name: str) -> None:
    assert name in names_in(path)


def test_every_row_has_a_test() -> None:
    assert len(rows()) > 60
    for cells in rows():
        assert len(cells) == 3, cells
        assert re.fullmatch(r"`tests/[\w/]+\.py::\w+`(, `tests/[\w/]+\.py::\w+`)*", cells[2]), cells


def test_no_situation_comes_twice() -> None:
    situations = [cells[0] for cells in rows()]
    assert len(set(situations)) == len(situations)
