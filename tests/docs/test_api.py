"""The reference: every public name is on one of its pages, and the table of an observation is that of its fields."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import tokenprune
from tokenprune import Observation

DOCS = Path(tokenprune.__file__).parents[1] / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("api*.md"))}
SHOWN = [name for text in PAGES.values() for name in re.findall(r"^::: (\S+)$", text, re.M)]
PACKAGES = re.findall(r"^## (tokenprune\.[\w.]+)$", PAGES["api-packages.md"], re.M)


def test_every_public_name_is_shown_once() -> None:
    names = [name.removeprefix("tokenprune.") for name in SHOWN if name.count(".") == 1]
    assert sorted(names) == sorted(tokenprune.__all__)
    assert len(names) > 60


def test_every_name_of_the_further_packages_is_shown() -> None:
    for package in PACKAGES:
        module = importlib.import_module(package)
        shown = {name.rpartition(".")[2] for name in SHOWN if name.rpartition(".")[0] == package}
        assert shown, package
        assert shown >= set(getattr(module, "__all__", ())), package
        assert all(hasattr(module, name) for name in shown), package


def test_packages_with_a_public_face_are_shown() -> None:
    """Every package whose `__init__.py` lists names is there, unless its names are those of `tokenprune` itself."""
    root = Path(tokenprune.__file__).parent
    for file in sorted(root.rglob("__init__.py")):
        package = ".".join(["tokenprune", *file.parent.relative_to(root).parts])
        names = set(importlib.import_module(package).__all__) if "__all__" in file.read_text() else set()
        hidden = {"Part", "PrunedModel"}  # what handles are made of
        assert package in PACKAGES or names <= set(tokenprune.__all__) | hidden, package


def test_the_overview_names_every_public_name_or_their_number() -> None:
    counted = {"Policy": 13, "Schedule": 8, "Error": 14}
    for ending, number in counted.items():
        bases = {"SelectionPolicy", "ScorePolicy", "Schedule"}
        assert len([name for name in tokenprune.__all__ if name.endswith(ending) and name not in bases]) == number
    named = set(re.findall(r"`(\w+)`", PAGES["api.md"]))
    rest = {name for name in tokenprune.__all__ if not name.endswith(tuple(counted))}
    assert rest - named == set()


def test_the_table_of_an_observation_has_its_fields() -> None:
    table = PAGES["api-policies.md"].split("| field |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()[2:]]
    fields = dataclasses.fields(Observation)
    assert [row[0].strip("` ") for row in rows] == [field.name for field in fields]
    for field, (_, _, _, none) in zip(fields, rows, strict=True):
        assert none.startswith("never") == ("None" not in str(field.type) or field.name == "age"), field.name
