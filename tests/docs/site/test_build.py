"""`make docs`: all pages are in the site, nothing is fetched from other sites, and what is broken ends the build."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*?\ssrc=\"?([^\s\">]+)"
    r"|<link(?=[^>]*rel=\"?(?:stylesheet|icon|preconnect|preload))[^>]*?\shref=\"?([^\s\">]+)"
)
"""Scripts, pictures, styles: what a browser loads by itself."""
CONFIG = tomllib.loads((DOCS / "site" / "zensical.toml").read_text())["project"]


def navigation(entries: list[dict[str, object]]) -> list[str]:
    """The pages of the navigation, in order."""
    found: list[str] = []
    for entry in entries:
        for target in entry.values():
            found += navigation(target) if isinstance(target, list) else [str(target)]
    return found


def test_make_docs_runs_the_builder() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\ndocs:")[1].split("\n\n")[0]
    assert recipe.splitlines()[1:] == ["\t$(VENV)/bin/python docs/site/build.py"]


def test_every_page_is_in_the_navigation_once() -> None:
    notebooks = [f"examples/{path.stem}.md" for path in (DOCS / "examples").glob("*.ipynb")]
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")] + notebooks + ["contributing.md"]
    assert sorted(navigation(CONFIG["nav"])) == sorted(pages)


def test_every_page_is_built(site: Path) -> None:
    for page in navigation(CONFIG["nav"]):
        built = site / page.replace("README.md", "index.md")  # a folder's README is its first page
        assert built.with_suffix(".html").is_file(), page


def test_nothing_is_fetched_from_other_sites(site: Path) -> None:
    """Links that a reader follows may lead elsewhere."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        sources = ["".join(match) for match in FETCHED.findall(page.read_text())]
        assert sources
        assert [source for source in sources if re.match(r"(?:[a-z]+:)?//", source)] == []


def test_lists_are_lists(site: Path) -> None:
    """The site's Markdown makes a list that follows a line of text without a blank line a part of the paragraph."""
    for page in site.rglob("*.html"):
        paragraphs = re.findall(r"<p>(.*?)</p>", page.read_text(), re.DOTALL)
        assert [text for text in paragraphs if re.search(r"\n(?:- |\d+\. )", text)] == [], page.name


def test_a_link_to_no_heading_ends_the_build(
    builder: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    with (tmp_path / "docs" / "faq.md").open("a") as page:
        page.write("\n[nowhere](speed.md#no-such-heading)\n")
    with pytest.raises(SystemExit, match="Zensical ended with exit code 1"):
        builder.build(tmp_path / "site", tmp_path / "docs")
    assert "anchor does not exist" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("other.html", True),
        ("other.html#there", True),
        ("#here", True),
        ("picture.png", True),
        ("https://example.org/nothing", True),
        ("other.html#nowhere", False),
        ("#nowhere", False),
        ("none.html", False),
        ("none.png", False),
    ],
)
def test_links_of_the_built_site(builder: ModuleType, tmp_path: Path, link: str, leads: bool) -> None:
    (tmp_path / "page.html").write_text(f'<h1 id="here">Page</h1><a href="{link}">link</a>')
    (tmp_path / "other.html").write_text('<h1 id="there">Other</h1>')
    (tmp_path / "picture.png").write_bytes(b"")
    assert builder.broken_links(tmp_path) == ([] if leads else [f"page.html: {link}"])


def test_the_repository_keeps_nothing_that_was_built() -> None:
    ignored = subprocess.run(["git", "check-ignore", "build/docs/html/index.html"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
