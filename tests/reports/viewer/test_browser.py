"""The page in a real browser, headless: what moves when a person drags, points and types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenprune import Trace
from tokenprune.reports.viewer import Run, save_html

HEIGHT, WIDTH = 4, 6
DASH = "\u2013"
RED, BLUE = Image.new("RGB", (48, 32), (255, 0, 0)), Image.new("RGB", (48, 32), (0, 0, 255))
GREEN, GREY = Image.new("RGB", (48, 32), (0, 255, 0)), Image.new("RGB", (48, 32), (100, 100, 100))


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page of runs; fails at the end for anything that it said on the console or asked the net for."""
    said: list[str] = []
    asked: list[str] = []
    contexts: list[Any] = []

    def opened(runs: Any, *, size: tuple[int, int] = (1200, 1800), scheme: str = "light", **given: Any) -> Any:
        path = tmp_path / "run.html"
        save_html(path, runs, **given)
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url[:60]))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture
def page(show: Callable[..., Any], traced: dict[str, Trace]) -> Any:
    """Two runs: CAT with previews after steps 1 and 3, noise with fewer steps and no pictures."""
    runs = {"CAT": Run(traced["CAT"], BLUE, {1: GREEN, 3: GREY}), "noise": traced["noise"]}
    return show(runs, dense=RED)


def state(page: Any, run: int = 0) -> str:
    return page.locator(".run").nth(run).locator(".state").inner_text().replace("\xa0", " ")


def history(page: Any, run: int = 0) -> str:
    return page.locator(".run").nth(run).locator(".token").inner_text()


def colours(page: Any, run: int = 0) -> np.ndarray:
    """Colours [4, 6, 3] in the middles of the cells of a run's map of tokens."""
    found = page.evaluate(
        """run => {
            const canvas = document.querySelectorAll("canvas")[run], context = canvas.getContext("2d");
            const { width, height } = canvas, found = [];
            for (let row = 0; row < 4; row++) for (let column = 0; column < 6; column++)
                found.push([...context.getImageData((column + .5) * width / 6, (row + .5) * height / 4, 1, 1).data]);
            return found;
        }""",
        run,
    )
    return np.array(found)[:, :3].reshape(HEIGHT, WIDTH, 3)


def over(page: Any, row: int, column: int, run: int = 0) -> None:
    box = page.locator("canvas").nth(run).bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / WIDTH, box["y"] + (row + 0.5) * box["height"] / HEIGHT)


def computed(trace: Trace, step: int) -> np.ndarray:
    return trace.computed[step, 0].view(HEIGHT, WIDTH).numpy()


def test_a_browser_that_is_too_old_is_told_so(browser: Any, traced: dict[str, Trace], tmp_path: Path) -> None:
    save_html(tmp_path / "run.html", {"CAT": traced["CAT"]})
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "run.html").as_uri())
    note = page.get_by_text("This browser cannot show the page (it takes one of 2023 or newer): ")
    note.wait_for()
    assert "DecompressionStream" in note.inner_text()
    page.close()


def test_the_slider_moves_all_runs(page: Any, traced: dict[str, Trace]) -> None:
    assert page.locator("#step-text").inner_text() == f"step 0 of 0{DASH}6"
    assert state(page).startswith("step 0: all 24 tokens, ")
    box = page.locator("#step").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert page.locator("#step-text").inner_text() == f"step 6 of 0{DASH}6"
    assert state(page).startswith("step 6: 7 of 24 tokens, ")
    assert state(page, 1).startswith("ended at step 4: 7 of 24 tokens, ")
    page.locator("#before").click()
    page.locator("#before").click()
    assert state(page).startswith("step 4: skipped, no tokens, ")
    seconds = traced["CAT"].steps[4].report.seconds
    assert state(page).endswith(f", {seconds:.3f} s")


def test_arrow_keys_go_from_step_to_step(page: Any) -> None:
    steps = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"):
        page.keyboard.press(key)
        steps.append(page.locator("#step").input_value())
    assert steps == ["1", "2", "1", "6", "6", "0", "0"]
    page.locator("#step").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#step").input_value() == "1"
    page.locator("#divider").focus()  # which has arrow keys of its own
    page.keyboard.press("ArrowRight")
    assert page.locator("#step").input_value() == "1"
    assert page.locator("#divider").input_value() == "50.5"


def test_an_address_leads_to_a_step(page: Any) -> None:
    page.goto(f"{page.url}#5")
    page.get_by_text(f"step 5 of 0{DASH}6").wait_for()
    page.reload()
    page.get_by_text(f"step 5 of 0{DASH}6").wait_for()


def test_tab_reaches_every_control_and_shows_where_it_is(page: Any) -> None:
    reached = []
    for _ in range(13):
        page.keyboard.press("Tab")
        name, width = page.evaluate(
            """() => {
                const at = document.activeElement;
                const shown = at.type === "radio" ? at.nextElementSibling : at.id === "divider" ? at.parentElement : at;
                return [at.id || at.name || at.tagName.toLowerCase(), parseFloat(getComputedStyle(shown).outlineWidth)];
            }"""
        )
        reached.append(name)
        assert width >= 2, name
    controls = ["left", "right", "difference", "divider", "before", "play", "after", "step", "overlay"]
    assert reached == [*controls, "canvas", "summary", "canvas", "summary"]


def test_the_divider_drags(page: Any) -> None:
    box = page.locator("#compare").bounding_box()
    middle = box["y"] + box["height"] / 2

    def seen(share: float) -> list[int]:
        """The colour on the screen at a share of the pictures' width, away from the labels and the divider's knob."""
        clip = {"x": box["x"] + share * box["width"], "y": box["y"] + 0.8 * box["height"], "width": 1, "height": 1}
        return pixel(page.screenshot(clip=clip))

    assert (seen(0.2), seen(0.8)) == ([255, 0, 0], [0, 0, 255])
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], middle, steps=5)
    page.mouse.up()
    assert float(page.locator("#divider").input_value()) == pytest.approx(90, abs=2)
    assert (seen(0.2), seen(0.8), seen(0.97)) == ([255, 0, 0], [255, 0, 0], [0, 0, 255])
    page.locator("#left").select_option("CAT")
    assert seen(0.2) == [0, 0, 255]
    assert page.locator("#left-name").inner_text() == page.locator("#right-name").inner_text() == "CAT"
    page.locator("#difference").check()
    assert (seen(0.2), seen(0.97)) == ([0, 0, 0], [0, 0, 0])
    page.locator("#left").select_option("plain model")
    assert seen(0.5) == [255, 0, 255]


def pixel(screenshot: bytes) -> list[int]:
    from io import BytesIO

    return list(Image.open(BytesIO(screenshot)).convert("RGB").getpixel((0, 0)))


def test_computed_tokens_are_in_colour_and_the_others_pale(page: Any, traced: dict[str, Trace]) -> None:
    for step, colour in ((0, (0, 255, 0)), (1, (0, 255, 0)), (2, (0, 255, 0)), (3, (100,) * 3), (6, (100,) * 3)):
        page.locator("#step").fill(str(step))
        plain = (colours(page) == colour).all(-1)
        assert np.array_equal(plain, computed(traced["CAT"], step)), step
    page.locator("#step").fill("4")
    assert not (colours(page) == (100,) * 3).all(-1).any()  # a skipped step computes none
    assert "Latents decoded after step 3." in page.locator(".run").first.locator(".preview").inner_text()
    assert "No picture was given" in page.locator(".run").nth(1).locator(".preview").inner_text()
    full = colours(page, 1)[computed(traced["noise"], 4)]
    assert len(np.unique(full, axis=0)) == 1


def test_ages_have_a_colour_each(page: Any, traced: dict[str, Trace]) -> None:
    page.locator("#step").fill("6")
    page.locator("input[value=age]").check(force=True)
    ages = traced["CAT"].steps[6].staleness[0].view(HEIGHT, WIDTH).numpy()
    found = colours(page)
    assert (found[ages == 0] == (100,) * 3).all()
    kinds = [np.unique(found[ages == age], axis=0) for age in np.unique(ages)]
    assert [len(kind) for kind in kinds] == [1] * len(kinds)
    assert len({tuple(kind[0]) for kind in kinds}) == len(kinds) > 2
    assert "Reused for 1" in page.locator("#legend").inner_text()


def test_clusters_have_a_colour_each(page: Any, traced: dict[str, Trace]) -> None:
    page.locator("#step").fill("6")
    page.locator("input[value=clusters-0]").check(force=True)
    labels = traced["CAT"].steps[6].labels["labels"][0].view(HEIGHT, WIDTH).numpy()
    found = colours(page)
    kinds = [np.unique(found[labels == label], axis=0) for label in np.unique(labels)]
    assert [len(kind) for kind in kinds] == [1] * len(kinds)
    assert len({tuple(kind[0]) for kind in kinds}) == len(kinds) > 2
    assert "keeps no such clusters" in page.locator(".run").nth(1).locator(".preview").inner_text()
    page.locator("#step").fill("0")
    assert "No clusters at this step" in page.locator(".run").first.locator(".preview").inner_text()


def test_pointing_at_a_token_tells_its_history_in_every_run(page: Any, traced: dict[str, Trace]) -> None:
    page.locator("#step").fill("4")
    assert history(page) == "Point at a token to see when it was computed."
    for row, column in ((1, 2), (3, 5)):
        over(page, row, column)
        for run, name in enumerate(("CAT", "noise")):
            mask = traced[name].computed[:, 0, row * WIDTH + column].tolist()
            steps = [step for step, hit in enumerate(mask) if hit]
            last = max(step for step in steps if step <= 4)
            told = history(page, run)
            assert told.startswith(f"Token {row * WIDTH + column} (row {row}, column {column}): ")
            assert f"reused since step {last}, {4 - last} step" in told if last < 4 else "computed at this step" in told
            assert expanded(told.partition("Computed at step")[2]) == steps
    page.mouse.move(5, 5)
    assert history(page).startswith("Point at a token")


def expanded(text: str) -> list[int]:
    """Steps of text like `s 0-2, 5.`, with dashes, one by one."""
    found = []
    for part in text.lstrip("s ").rstrip(".").split(", "):
        low, _, high = part.partition(DASH)
        found += range(int(low), int(high or low) + 1)
    return found


def test_arrow_keys_on_a_map_go_from_token_to_token(page: Any) -> None:
    page.locator("canvas").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    assert "(row 0, column 0)" in history(page)
    assert page.locator("#step").input_value() == "0"
    page.keyboard.press("Escape")
    assert history(page).startswith("Point at a token")


def test_a_bar_leads_to_its_step(page: Any) -> None:
    chart = page.locator(".run").first.locator("svg").first
    box = chart.bounding_box()
    chart.click(position={"x": 3.5 * box["width"] / 7, "y": 5})
    assert page.locator("#step").input_value() == "3"
    now = chart.locator("rect").evaluate_all("bars => bars.map((bar) => bar.classList.contains('now'))")
    assert now == [False, False, False, True, False, False, False]


def test_play_goes_on_by_itself_until_it_is_stopped(page: Any) -> None:
    page.locator("#play").click()
    page.get_by_text(f"step 2 of 0{DASH}6").wait_for()
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"


def test_images_of_a_batch_are_chosen(show: Callable[..., Any], traced: dict[str, Trace]) -> None:
    page = show({"two": Run(traced["two"], [BLUE, GREEN])}, dense=[RED, RED])
    page.locator("#step").fill("5")
    for image, colour in enumerate(((0, 0, 255), (0, 255, 0))):
        page.locator("#image").select_option(str(image))
        mask = traced["two"].computed[5, image].view(HEIGHT, WIDTH).numpy()
        assert np.array_equal((colours(page) == colour).all(-1), mask)


def test_frames_of_a_video_are_chosen(show: Callable[..., Any], make_trace: Callable[..., Trace]) -> None:
    trace = make_trace((3, HEIGHT, WIDTH))
    page = show({"video": Run(trace, [RED, RED, GREEN, GREEN, BLUE])})
    page.locator("#step").fill("3")
    for frame, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        page.locator("#frame").fill(str(frame))
        mask = trace.computed[3, 0].view(3, HEIGHT, WIDTH)[frame].numpy()
        assert np.array_equal((colours(page) == colour).all(-1), mask)
    over(page, 2, 3)
    assert history(page).startswith(f"Token {2 * 24 + 2 * 6 + 3} (row 2, column 3, frame 2): ")


def test_tokens_without_a_grid_are_drawn_in_rows(show: Callable[..., Any], make_trace: Callable[..., Trace]) -> None:
    trace = make_trace((22,))
    page = show({"row": Run(trace, BLUE)}, dense=RED)
    page.locator("#step").fill("3")
    assert "no grid of tokens" in page.locator(".run").inner_text()
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    assert history(page).startswith("Token 0: ")
    for _ in range(9):
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
    assert history(page) == "No token there."


@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_width_and_can_be_read(
    width: int, scheme: str, show: Callable[..., Any], traced: dict[str, Trace]
) -> None:
    """Nothing sticks out to the right, and text stands out from its ground by the 4.5 that WCAG asks for."""
    runs = {name: Run(traced["CAT"], BLUE, {1: GREEN}) for name in ("CAT", "a rather long name of another policy", "x")}
    page = show(runs, dense=RED, size=(width, 800), scheme=scheme, title="a prompt that goes on for a while " * 3)
    beyond = "box => { const at = document.querySelector(box); return at.scrollWidth - at.clientWidth }"
    assert [page.evaluate(beyond, box) for box in ("html", ".facts", ".bar")] == [0, 0, 0]
    pairs = page.evaluate(
        """() => [["body", "body"], [".state", "body"], [".bar", ".bar"], [".legend", "body"],
                  ["input:checked + span", "input:checked + span"]].map(([text, ground]) => [
            getComputedStyle(document.querySelector(text)).color,
            getComputedStyle(document.querySelector(ground)).backgroundColor])"""
    )
    for text, ground in pairs:
        assert contrast(text, ground) >= 4.5, (text, ground)
    (ground,) = {ground for text, ground in pairs[:1]}
    assert (luminance(ground) < 0.2) is (scheme == "dark")


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)
