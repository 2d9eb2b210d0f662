"""The tables of docs/memory.md are what their script makes today."""

from __future__ import annotations

import importlib.util
import sys
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
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["memory", "host-memory"])
def mark(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rows(script: ModuleType, mark: str) -> list[str]:
    start, end = (f"<!-- {mark}: {word} -->\n" for word in ("start", "end"))
    found: str = script.PAGE.read_text().split(start)[1].split(end)[0]
    return found.splitlines()


def test_it_has_a_row_for_each_model(script: ModuleType, mark: str, rows: list[str]) -> None:
    assert set(script.TABLES) == {"memory", "host-memory"}
    assert "\n".join(rows[:2]) == script.header(mark)
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| `{name}`" for name in script.MODELS]


@pytest.mark.parametrize("name", ["random:sd3-medium"])
def test_a_row_is_what_the_models_shapes_give(script: ModuleType, mark: str, rows: list[str], name: str) -> None:
    """One that is built in little time; all of them need minutes."""
    assert script.table(mark, (name,)).splitlines()[2] in rows
