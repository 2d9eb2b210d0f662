"""The file: everything is in it, nothing is fetched, and what cannot be shown is refused before it is written."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenprune
from tokenprune import Trace, TraceError
from tokenprune.errors import ConfigurationError
from tokenprune.reports.viewer import Run, page, save_html, tokens

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))
NASTY = "</script><script>alert(1)</script><b>&\"'"


def test_it_holds_what_the_traces_say(
    traced: dict[str, Trace], tmp_path: Path, data_of: Callable[[Path], dict[str, Any]]
) -> None:
    path = tmp_path / "new" / "run.html"
    runs = {"CAT": Run(traced["CAT"], PICTURE, {0: PICTURE, 6: PICTURE}), "noise": traced["noise"]}
    save_html(path, runs, dense=PICTURE, title="a prompt")
    data = data_of(path)
    cat, noise = data["runs"]
    assert (data["title"], data["images"], data["frames"], data["scaled"]) == ("a prompt", 1, 1, None)
    assert (cat["name"], cat["grid"], cat["ofPicture"]) == ("CAT", [4, 6], True)
    assert cat["ages"] == tokens.ages(traced["CAT"])
    assert cat["clusters"] == tokens.clusters(traced["CAT"])
    assert cat["share"] == pytest.approx((2 * 24 + 4 * 7) / (7 * 24))
    assert cat["seconds"] == pytest.approx(sum(step.report.seconds for step in traced["CAT"].steps), abs=1e-4)
    assert data["dense"] == cat["picture"] == cat["previews"]["0"] == cat["previews"]["6"]
    assert (noise["picture"], noise["previews"], noise["clusters"], len(noise["steps"])) == (None, {}, {}, 5)
    assert [child.name for child in path.parent.iterdir()] == ["run.html"]


def test_nothing_is_fetched_and_the_browser_is_told_so(traced: dict[str, Trace], tmp_path: Path) -> None:
    save_html(tmp_path / "run.html", {"CAT": traced["CAT"]})
    text = (tmp_path / "run.html").read_text()
    assert "://" not in text
    assert re.findall(r"\b(?:src|href|action)\s*=\s*[\"']", text) == []
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'; img-src data:" in text


def test_names_and_titles_are_text(
    traced: dict[str, Trace], tmp_path: Path, data_of: Callable[[Path], dict[str, Any]]
) -> None:
    save_html(tmp_path / "run.html", {NASTY: Run(traced["CAT"], PICTURE)}, dense=PICTURE, title=NASTY)
    text = (tmp_path / "run.html").read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<b>" not in text
    data = data_of(tmp_path / "run.html")
    assert (data["title"], data["runs"][0]["name"]) == (NASTY, NASTY)


def test_a_trace_saves_itself(
    traced: dict[str, Trace], tmp_path: Path, data_of: Callable[[Path], dict[str, Any]]
) -> None:
    path = tmp_path / "run.html"
    traced["CAT"].save_html(path, picture=PICTURE, dense=PICTURE, previews={3: PICTURE}, name="CAT", title="a prompt")
    one = data_of(path)
    save_html(path, {"CAT": Run(traced["CAT"], PICTURE, {3: PICTURE})}, dense=PICTURE, title="a prompt")
    assert one == data_of(path)
    traced["CAT"].save_html(str(path))
    bare = data_of(path)
    assert (bare["dense"], bare["runs"][0]["picture"], bare["runs"][0]["name"]) == (None, None, "pruned")


@pytest.mark.parametrize(("images", "pictures"), [(2, 2), (1, 3), (1, 1)])
def test_batches(images: int, pictures: int, make_trace: Any, tmp_path: Path, data_of: Any) -> None:
    """A model may have one selection for a whole batch."""
    given = [PICTURE] * pictures
    save_html(tmp_path / "b.html", {"x": Run(make_trace((4, 6), images), given, {2: given})}, dense=given)
    data = data_of(tmp_path / "b.html")
    assert data["images"] == pictures
    assert data["runs"][0]["images"] == images
    assert [len(each) for each in (data["dense"], data["runs"][0]["picture"])] == [pictures] * 2


@pytest.mark.parametrize(
    ("grid", "picture", "frames", "of_picture"),
    [((3, 4, 6), [PICTURE] * 9, 3, True), ((24,), PICTURE, 1, False), ((2, 3, 2, 2), PICTURE, 1, False)],
)
def test_grids(
    grid: tuple[int, ...], picture: Any, frames: int, of_picture: bool, make_trace: Any, tmp_path: Path, data_of: Any
) -> None:
    save_html(tmp_path / "g.html", {"x": Run(make_trace(grid), picture)}, dense=picture)
    data = data_of(tmp_path / "g.html")
    (run,) = data["runs"]
    assert (data["frames"], run["frames"], run["ofPicture"]) == (frames, frames, of_picture)
    assert [len(each) for each in (data["dense"][0], run["picture"][0])] == [frames] * 2
    assert ("no grid of tokens" in (tmp_path / "g.html").read_text()) is not of_picture


def noise(side: int) -> Image.Image:
    """A picture that no format makes small."""
    return Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_pictures_are_scaled_down_to_keep_the_page_small(make_trace: Any, tmp_path: Path, data_of: Any) -> None:
    whole = noise(2000)
    runs = {name: Run(make_trace((8, 8)), whole, dict.fromkeys(range(5), whole)) for name in "abc"}
    save_html(tmp_path / "p.html", runs, dense=whole)
    assert page.LIMIT // 3 < (tmp_path / "p.html").stat().st_size < page.LIMIT
    assert data_of(tmp_path / "p.html")["scaled"] in page.SIDES[1:]
    assert "scaled down to" in (tmp_path / "p.html").read_text()


def test_a_page_that_stays_too_large_is_refused(
    make_trace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LIMIT", 150_000)
    expected = r"expected a page of at most 0\.15 MB, got 0\.\d MB with pictures of 256 pixels a side; give fewer runs"
    with pytest.raises(ConfigurationError, match=expected):
        save_html(tmp_path / "p.html", {"x": Run(make_trace((8, 8)), noise(300))}, dense=noise(300))
    assert not list(tmp_path.iterdir())


def test_a_page_of_a_model_at_full_size_is_small(make_trace: Any, tmp_path: Path) -> None:
    runs = {name: make_trace((64, 64), steps=28) for name in "abcd"}
    save_html(tmp_path / "p.html", runs)
    assert (tmp_path / "p.html").stat().st_size < page.LIMIT / 5


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("work was begun")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("run.htm", r"path: expected a file that ends in \.html, got .*run\.htm"),
        ("file/run.html", r"path: expected a file that can be written, got .*: Not a directory"),
    ],
)
def test_the_path_is_checked_first(path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(page, "_page", never)
    with pytest.raises(ConfigurationError, match=message):
        save_html(tmp_path / path, {})


def test_the_extra_is_checked_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "_page", never)
    monkeypatch.setattr(page, "find_spec", lambda _: None)
    expected = r"the extra 'viewer' is needed, of which jinja2, pillow are not installed: pip install 'tokenprune-dit\["
    with pytest.raises(ConfigurationError, match=expected):
        save_html(tmp_path / "run.html", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (lambda _: {}, {}, r"runs: expected traces by name, such as \{'CAT': handle.trace\}, got \{\}"),
        (lambda trace: trace, {}, "runs: expected traces by name"),
        (lambda _: {"x": 3}, {}, "runs: x: expected a Trace, such as handle.trace, got a int"),
        (lambda trace: {"x": Run(trace, "a.png")}, {}, "runs: x: picture: expected pictures of PIL"),
        (lambda trace: {"x": Run(trace, [PICTURE] * 3)}, {}, "runs: x: picture: expected pictures of 2 images"),
        (
            lambda trace: {"x": Run(trace, previews={7: [PICTURE] * 2})},
            {},
            "x: previews: expected steps from 0 to 6, got 7",
        ),
        (
            lambda trace: {"x": Run(trace, previews={1: PICTURE})},
            {},
            r"x: previews\[1\]: expected pictures of 2 images",
        ),
        (
            lambda trace: {"x": trace},
            {"dense": PICTURE},
            "dense: expected pictures of 2 images, as the runs have, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    runs: Callable[[Trace], Any], options: dict[str, Any], message: str, traced: dict[str, Trace], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        save_html(tmp_path / "run.html", runs(traced["two"]), **options)
    assert not list(tmp_path.iterdir())


def test_a_trace_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="runs: pruned: expected a trace with steps, got none; draw a picture before"):
        Trace((), ()).save_html(tmp_path / "run.html")


def test_the_files_of_the_page_are_in_the_package() -> None:
    folder = files("tokenprune.reports.viewer")
    data = {each.name for each in folder.iterdir() if each.is_file() and not each.name.endswith(".py")}
    root = Path(tokenprune.__file__).parent
    patterns = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path.name for pattern in patterns["tokenprune"] for path in root.glob(pattern)}
    assert {"template.html.jinja", "viewer.css", "viewer.js"} == data
    assert data <= shipped
