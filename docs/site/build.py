"""Build the site from docs/: `python docs/site/build.py [FOLDER]`, by default build/docs; `make docs` calls it.

Pages of docs/ are taken as they are, notebooks of docs/examples become pages, the guide for contributors joins them.
Zensical builds them strictly: a link to a page or a heading that is not there ends the build. Zensical looks at links
between pages alone, so links of the finished site are checked here, those to pictures and files included.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
DOCS, SITE = ROOT / "docs", ROOT / "docs" / "site"


def build(folder: Path, docs: Path = DOCS) -> Path:
    """Build the site of the pages in `docs` in a folder, anew; gives the folder of its HTML.

    Raises:
        SystemExit: Zensical refused a page, or a link of the site leads nowhere.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    shutil.copytree(docs, pages, ignore=shutil.ignore_patterns("site", ".*"))
    for file in (SITE / "assets").iterdir():
        shutil.copy(file, pages)
    shutil.copytree(SITE / "overrides", folder / "overrides")
    shutil.copy(SITE / "zensical.toml", folder)
    write_contributing(pages)
    for notebook in sorted((pages / "examples").glob("*.ipynb")):
        write_notebook(notebook)
    for page in pages.glob("*.md"):
        page.write_text(re.sub(r"\]\((examples/[\w-]+)\.ipynb\)", r"](\1.md)", page.read_text()))

    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=settings, check=False)
    if done.returncode:
        raise SystemExit(f"docs: Zensical ended with exit code {done.returncode}; its messages say which page and why")
    broken = broken_links(folder / "html")
    if broken:
        raise SystemExit("docs: links that lead nowhere:\n" + "\n".join(broken))
    return folder / "html"


def write_contributing(pages: Path) -> None:
    """The guide for contributors as a page beside the others."""
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    (pages / "contributing.md").write_text(text.replace("](../docs/", "]("))


def write_notebook(notebook: Path) -> None:
    """A page of a notebook's cells and outputs, with its pictures beside it."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(notebook), {"unique_key": notebook.stem})
    for name, content in resources["outputs"].items():
        (notebook.parent / name).write_bytes(content)
    title, body = text.lstrip().split("\n", maxsplit=1)
    note = f"[Download this page as a notebook]({notebook.name})."
    notebook.with_suffix(".md").write_text(f"{title}\n\n{note}\n{body}")


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.to: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element links to and is called."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.to.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(html: Path) -> list[str]:
    """The links of a built site that lead to no file or to no anchor of it, as "page: link"."""
    pages = {page.resolve(): Links(page) for page in sorted(html.rglob("*.html")) if page.name != "404.html"}
    return [
        f"{page.relative_to(html.resolve())}: {link}"
        for page, links in pages.items()
        for link in sorted(links.to)
        if not re.match(r"[a-z]+:", link) and not leads_somewhere(page, link, pages)
    ]


def leads_somewhere(page: Path, link: str, pages: dict[Path, Links]) -> bool:
    """Whether a page's link leads to a file, and to an anchor in it where it names one."""
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if target.is_dir():
        target /= "index.html"
    return target.exists() and (not anchor or target not in pages or anchor in pages[target].anchors)


if __name__ == "__main__":
    found = build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs")
    print(f"docs: {found / 'index.html'}")
