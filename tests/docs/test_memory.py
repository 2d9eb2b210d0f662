"""The table of docs/memory.md is what its script makes today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """memory_table.py, which lies beside this file."""
    spec = importlib.util.spec_from_file_location("memory_table", Path(__file__).with_name("memory_table.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script: ModuleType) -> list[str]:
    start, end = (f"<!-- {script.MARK}: {word} -->\n" for word in ("start", "end"))
    found: str = script.PAGE.read_text().split(start)[1].split(end)[0]
    return found.splitlines()


def test_it_has_a_row_for_each_model(script: ModuleType, rows: list[str]) -> None:
    assert "\n".join(rows[:2]) == script.HEADER
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| `{name}`" for name in script.MODELS]


@pytest.mark.parametrize("name", ["random:sd3-medium"])
def test_a_row_is_what_the_models_shapes_give(script: ModuleType, rows: list[str], name: str) -> None:
    """One that is built in little time; all of them need minutes."""
    assert script.row(name) in rows
