"""The walk through one pruned step: its files and functions are there, and its shapes are those of the model."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import tokenprune

PACKAGE = Path(tokenprune.__file__).parent
DOCS = PACKAGE.parent / "docs"
PAGE = (DOCS / "how-it-works.md").read_text()
WALK, CHANGES = PAGE.split("## One pruned step, file by file")[1].split("## To change something")
STEPS = re.findall(r"^\|(?: \d+ \|)? `([\w/.]+\.py)` \| `(\w+)` \|", WALK, re.M)
PATHS = sorted(set(re.findall(r"`((?:\.\./)?[\w/]+(?:\.py|/))`", WALK + CHANGES.split("\n## ")[0])))


def test_the_walk_is_long_enough_to_check() -> None:
    assert len(STEPS) > 25
    assert len(PATHS) > 40


@pytest.mark.parametrize(("path", "name"), STEPS)
def test_each_step_of_the_walk_names_something_in_its_file(path: str, name: str) -> None:
    tree = ast.parse((PACKAGE / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("path", PATHS)
def test_each_file_of_the_page_is_there(path: str) -> None:
    assert (PACKAGE / path).exists()


def test_the_drawing_has_every_package() -> None:
    drawing = (DOCS / "images" / "packages.svg").read_text()
    packages = [file.parent.name for file in PACKAGE.glob("*/__init__.py")]
    assert len(packages) > 8
    assert [name for name in packages if f">{name}<" not in drawing] == []


def test_the_shapes_are_those_of_the_model(capsys: Any) -> None:
    code = re.search(r"```python\n(.*?)```", WALK, re.S)
    printed = re.search(r"```text\n(.*?)```", WALK, re.S)
    assert code is not None
    assert printed is not None
    exec(code[1], {})
    assert capsys.readouterr().out == printed[1]
