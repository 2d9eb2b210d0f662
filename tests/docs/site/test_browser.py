"""The site in a real browser, opened as files: search, phones, and no request to anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab; fails at the end for any script error, and for anything that it asked the net for."""
    said: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport=DESK)
    tab = context.new_page()
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    yield tab
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []


def search(page: Any, site: Path, words: str) -> None:
    """Open the start page, and type into its search."""
    page.goto((site / "index.html").as_uri())
    page.get_by_role("button", name="Search").first.click()
    box = page.get_by_placeholder("Search")
    box.press_sequentially(words, delay=20)
    assert box.input_value() == words


@pytest.mark.parametrize(
    ("words", "title", "file"),
    [
        ("memory before", "Memory before a run", "memory.html"),
        ("SelectionError", "SelectionError", "api-errors.html"),
        ("RegionPolicy", "RegionPolicy dataclass", "api-policies.html"),
    ],
)
def test_the_search_finds_a_page(page: Any, site: Path, words: str, title: str, file: str) -> None:
    search(page, site, words)
    found = page.get_by_role("option", name=title).first
    found.wait_for()
    found.click()
    page.wait_for_url(f"**/{file}*")
    assert title.split()[0] in page.locator("article").inner_text()


def test_nothing_is_found_for_what_is_not_there(page: Any, site: Path) -> None:
    search(page, site, "memory")
    page.get_by_role("option").first.wait_for()
    search(page, site, "xylophonequartz")
    page.get_by_text("No results").wait_for()
    assert page.get_by_role("option").count() == 0


def test_no_page_scrolls_sideways_on_a_phone(page: Any, site: Path) -> None:
    page.set_viewport_size(PHONE)
    wide = {}
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":  # which a server shows in the place of others: its paths are those of a server
            continue
        page.goto(file.as_uri(), wait_until="domcontentloaded")
        scrolls, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        if scrolls > shown:
            wide[file.name] = scrolls
    assert wide == {}


def test_wide_tables_scroll_by_themselves(page: Any, site: Path) -> None:
    page.set_viewport_size(PHONE)
    page.goto((site / "peers.html").as_uri())
    boxes = page.evaluate(
        "[...document.querySelectorAll('.md-typeset__scrollwrap')].map(box => [box.scrollWidth, box.clientWidth])"
    )
    assert any(inside > shown for inside, shown in boxes)


def test_pictures_are_shown(page: Any, site: Path) -> None:
    for name in ("index.html", "examples/first-picture.html"):
        page.goto((site / name).as_uri())
        sizes = page.evaluate("[...document.querySelectorAll('article img')].map(picture => picture.naturalWidth)")
        assert sizes
        assert all(sizes)
