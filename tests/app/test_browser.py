"""The page as `tokenprune app` serves it, in a real browser, headless."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

WAIT = 60_000
"""Milliseconds that a page may take on a busy machine before a test fails."""

PHONE = (390, 844)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the command, in a process of its own, which says it as JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-m", "tokenprune", "app", "--port", str(port), "--steps", "4", "--device", "cpu"]
    command += ["--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout is not None
    said = []
    for line in running.stdout:
        said.append(line)
        if line.startswith("{"):
            break
    else:
        pytest.fail("".join(said))
    told = json.loads(said[-1])["address"].rstrip("/")
    assert told == f"http://127.0.0.1:{port}"
    yield told
    running.terminate()
    running.wait(30)
    running.stdout.close()


@pytest.fixture(scope="module")
def opened(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page; fails at the end for anything it said on the console or asked of another machine."""
    said: list[str] = []
    asked: list[str] = []
    contexts: list[Any] = []

    def open_page(size: tuple[int, int] = (1200, 1400), scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Draw").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def page(opened: Any) -> Any:
    """After a prompt was typed and the button pressed."""
    found = opened()
    found.get_by_label("Prompt").fill("a small blue star on a yellow background")
    found.get_by_role("button", name="Draw").click()
    found.locator("iframe").wait_for()
    return found


def background(page: Any) -> int:
    """How light the page is, 0 to 765."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(float(value)) for value in colour.strip("rgba()").split(",")[:3])


def test_both_pictures_come(page: Any) -> None:
    pictures = page.locator(".pictures img")
    assert pictures.count() == 2
    page.wait_for_function("() => [...document.querySelectorAll('.pictures img')].every(each => each.naturalWidth > 0)")
    sizes = pictures.evaluate_all("all => all.map(each => [each.naturalWidth, each.naturalHeight])")
    assert sizes == [[64, 64], [64, 64]]
    fits = pictures.evaluate_all("all => all.map(each => getComputedStyle(each).objectFit)")
    assert fits == ["contain", "contain"], "a small picture is not enlarged"
    first, second = pictures.evaluate_all("all => all.map(each => each.src)")
    assert first != second


def test_the_report_says_what_was_computed(page: Any) -> None:
    text = page.get_by_text("PSNR to the plain picture").locator("xpath=ancestor::table").inner_text()
    assert " dB" in text
    assert page.get_by_text("4, of which 2 full").count() == 1
    assert page.get_by_text("50.0% of the plain model's, which allows 2.00x").count() == 1


def test_the_frame_shows_every_step_and_can_be_worked(page: Any) -> None:
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(state="attached")
    assert frame.locator("h1").inner_text() == "a small blue star on a yellow background"
    assert frame.locator("#step").get_attribute("max") == "3"
    frame.locator("#after").click()
    assert frame.locator("#step").input_value() == "1"


def test_the_code_is_there(page: Any) -> None:
    page.get_by_role("tab", name="Code").click()
    code = page.locator(".cm-content")
    code.wait_for()
    assert "tokenprune.apply(pipe, tokenprune.plan(pipe, speedup=2" in code.inner_text()
    assert "'a small blue star on a yellow background'" in code.inner_text()
    page.get_by_role("tab", name="Every step").click()


def test_the_page_of_steps_can_be_saved(page: Any) -> None:
    link = page.locator('a[download="run.html"]')
    link.wait_for()
    given = page.request.get(link.get_attribute("href"))
    assert given.ok
    assert 'id="data"' in given.text()


def test_what_is_refused_is_said_and_the_next_picture_comes(opened: Any) -> None:
    page = opened()
    page.get_by_role("radio", name="CAT").click()
    alpha = page.get_by_role("spinbutton", name="CAT")
    alpha.fill("0")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("alpha: expected a fraction of image tokens in (0, 1], got 0").wait_for()
    alpha.fill("0.3")
    page.get_by_label("Full steps at the start").fill("2")
    page.get_by_role("button", name="Draw").click()
    page.locator("iframe").wait_for()
    page.get_by_text("4, of which 2 full").wait_for()


def test_dark_where_the_system_is_dark_and_on_a_phone_nothing_sticks_out(opened: Any) -> None:
    light, dark = opened(PHONE), opened(PHONE, "dark")
    assert background(light) > 600
    assert background(dark) < 200
    for page in (light, dark):
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        button = page.get_by_role("button", name="Draw").bounding_box()
        assert button["x"] >= 0
        assert button["x"] + button["width"] <= PHONE[0]
