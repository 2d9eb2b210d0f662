"""The notebooks of docs/examples run from top to bottom, and show what their files show."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def shown(notebook: Any) -> list[list[str]]:
    """Text and kinds of results of each code cell; numbers differ from machine to machine and are masked."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [output.get("text", "") or "".join(sorted(output.get("data", ()))) for output in cell.outputs]
            found.append(re.sub(r" *\d[\d.]*", " 0", "".join(texts)).splitlines())
    return found


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first-picture", "write-a-policy", "your-own-dit"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # what zmq and asyncio warn of when a kernel starts
def test_a_notebook_runs_and_shows_what_its_file_shows(path: Path) -> None:
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"no notebook can be run: {package} is not installed")
    spec = importlib.util.spec_from_file_location("notebooks", Path(__file__).with_name("notebooks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import nbformat

    kept = shown(nbformat.read(path, as_version=4))
    assert sum(map(bool, kept)) > 3
    assert shown(module.run(path)) == kept


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_its_links_lead_somewhere(path: Path) -> None:
    assert path.stat().st_size < 150_000
    links = re.findall(r"\]\((\.\./[^)#\s]+)(?:#[\w-]+)?\)", path.read_text())
    assert links
    assert [link for link in links if not (EXAMPLES / link).exists()] == []
