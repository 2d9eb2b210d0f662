"""What pages and issue templates name is there: files, modules, commands, and the pages that they link to."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import tokenprune

ROOT = Path(tokenprune.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]
FORMER = re.compile(r"^\| before \| now \|\n(?:\|.*\n)+", re.M)
"""A table of the changelog: it has names that are gone."""

FILES = [path for folder in ("tokenprune", "adapters", "tests", "docs") for path in (ROOT / folder).rglob("*.py")]
GROUPS = {"tokenprune.adapters", "tokenprune.schedules", "tokenprune.forecasts"}
"""Names that are no modules: groups of entry points."""


def text(page: Path) -> str:
    return FORMER.sub("", page.read_text())


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    if not module:
        return name in ("tokenprune", "tokenprune_adapters")
    if is_there(module) and hasattr(import_module(module), attribute):
        return True
    return is_there(module) and hasattr(import_module(module), "__path__") and find_spec(name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_of_a_page_are_there(page: Path) -> None:
    named = {name.removeprefix("../") for name in re.findall(r"[\w./-]*\w\.py\b", text(page))}
    known = [f"/{path.relative_to(ROOT)}" for path in FILES]
    placeholders = {name for name in named if "NAME" in name or "FAMILY" in name}
    assert {name for name in named - placeholders if not any(path.endswith(f"/{name}") for path in known)} == set()
    folders = set(re.findall(r"`((?:tests|docs|tokenprune|adapters)/[\w/]*/?)`", text(page)))
    assert {folder for folder in folders if not (ROOT / folder).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_modules_of_a_page_are_there(page: Path) -> None:
    named = set(re.findall(r"(?<![/\w.])tokenprune(?:_adapters)?(?:\.[a-zA-Z_]\w*)+", text(page))) - GROUPS
    assert {name for name in named if not name.endswith(".py") and not is_there(name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_there(page: Path) -> None:
    modules = set(re.findall(r"python -m\s+(tokenprune[\w.]*)", text(page)))
    assert {name for name in modules if not runs(name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = {link for link in re.findall(r"\]\(([^)\s]+)\)", text(page)) if "://" not in link and "/blob/" not in link}
    assert {link for link in links if not leads_somewhere(page, link)} == set()


@pytest.mark.parametrize(
    "name", ["tokenprune.taylor", "tokenprune.ops.kmean", "tokenprune.ops.kmeans.nothing", "nothing"]
)
def test_the_check_of_names_can_fail(name: str) -> None:
    assert not is_there(name)


def test_the_check_of_links_can_fail() -> None:
    assert leads_somewhere(ROOT / "README.md", "docs/how-it-works.md#limits")
    assert not leads_somewhere(ROOT / "README.md", "docs/how-it-works.md#nowhere")
    assert not leads_somewhere(ROOT / "README.md", "docs/how-it-worked.md")


def runs(module: str) -> bool:
    """Whether `python -m` has something to run."""
    if not is_there(module):
        return False
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    if spec.submodule_search_locations is not None:
        return find_spec(f"{module}.__main__") is not None
    return '__name__ == "__main__"' in Path(spec.origin).read_text()


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = page.parent / path if path else page
    if not heading or not target.is_file():
        return target.exists()
    titles = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
    return heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
