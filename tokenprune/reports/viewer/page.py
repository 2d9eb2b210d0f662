"""Putting a page together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from tokenprune.errors import ConfigurationError, TraceError
from tokenprune.reports.outputs import check_output
from tokenprune.reports.viewer import tokens
from tokenprune.reports.viewer.pictures import Encoder, Frames, read
from tokenprune.reports.viewer.tokens import Layout, Traced

LIMIT = 5_000_000
"""Most bytes of a page; pictures are scaled down to keep to it."""

SIDES = (1024, 768, 512, 384, 256)
"""Most pixels of a picture's side, in the order that they are tried in."""

PREVIEW_SIDE = 512
CUT = 4
"""Bars of seconds end at so many times the median: a step that waited for something would hide all others."""

MODULES = {"jinja2": "jinja2", "PIL": "pillow"}
"""What a page is made with, and how pip calls it."""


@dataclass(frozen=True, eq=False)
class Run:
    """One generation on a page.

    Attributes:
        trace: what it did to every token, of `apply(..., trace=True)`.
        picture: what it drew: a picture, one for each image, or the frames of a video; None shows none.
        previews: pictures of steps, by step; see `Previews`.
    """

    trace: Traced
    picture: Any = None
    previews: Mapping[int, Any] = field(default_factory=dict)


def save_html(
    path: str | Path, runs: Mapping[str, Run | Traced], *, dense: Any = None, title: str = "Token pruning, step by step"
) -> None:
    """Write traces as one page that holds all that it shows: no server, nothing fetched from the net, under 5 MB.

        save_html("runs.html", {"CAT": Run(cat_trace, cat_image), "plan": Run(plan_trace, plan_image)}, dense=image)

    It shows the pictures before and after with a divider between them, and for every step, of all runs side by side,
    the tokens that were computed, how old all others are, and the clusters that they were chosen by.

    Args:
        path: the file, ending in .html; its folder is made where it is missing.
        runs: what to show, by the names to show it under; a `Trace` alone has no pictures.
        dense: the plain model's picture of the same prompt and noise, of as many images.
        title: of the page, such as the prompt.

    Raises:
        ConfigurationError: the path cannot be written, or ends in something else; the extra `viewer` is not installed;
            pictures are none, or not as many as images; or the page would be too large without any pictures.
        TraceError: a trace has no steps.
    """
    path = Path(path)
    check_output("path", path, ".html")
    absent = [name for module, name in MODULES.items() if find_spec(module) is None]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        raise ConfigurationError(
            f"save_html: the extra 'viewer' is needed, of which {', '.join(absent)} {are} not installed: "
            f"pip install 'tokenprune-dit[viewer]'"
        )
    page = _page(runs, dense, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)


@dataclass(frozen=True, eq=False)
class _Shown:
    """A run whose pictures are read."""

    name: str
    trace: Traced
    layout: Layout
    picture: Frames | None
    previews: dict[int, Frames]

    def data(self) -> dict[str, Any]:
        """All but its pictures, as plain data."""
        rows = list(tokens.rows(self.trace))
        return {
            "name": self.name,
            "grid": list(self.trace.grid),
            "frames": self.layout.frames,
            "height": self.layout.height,
            "width": self.layout.width,
            "ofPicture": self.layout.of_picture,
            "images": tokens.images_of(self.trace),
            "steps": rows,
            "seconds": sum(row["seconds"] for row in rows),
            "slowest": max(row["seconds"] for row in rows),
            "share": sum(row["tokens"] for row in rows) / sum(row["of"] for row in rows),
            "ages": tokens.ages(self.trace),
            "oldest": tokens.oldest(self.trace),
            "clusters": tokens.clusters(self.trace),
        }

    def pictures(self, side: int) -> dict[str, Any]:
        """Its pictures, of at most so many pixels a side."""
        small = Encoder(min(side, PREVIEW_SIDE))
        return {
            "picture": None if self.picture is None else Encoder(side).encode(self.picture),
            "previews": {step: small.encode(pictures) for step, pictures in sorted(self.previews.items())},
        }

    def frames(self) -> int:
        """Frames to choose among, of its tokens or of its pictures."""
        drawn = [self.picture or [], *self.previews.values()]
        return max([self.layout.frames, *(len(frames) for pictures in drawn for frames in pictures)])

    def widest(self) -> int:
        """Most pixels of a side of its pictures."""
        return max((max(each.size) for frames in self.picture or () for each in frames), default=0)


def _page(runs: Mapping[str, Run | Traced], dense: Any, title: str) -> str:
    """The page, with pictures as large as its limit allows."""
    if not isinstance(runs, Mapping) or not runs:
        raise ConfigurationError(f"runs: expected traces by name, such as {{'CAT': handle.trace}}, got {runs!r}")
    shown = [_read(str(name), run) for name, run in runs.items()]
    frames = max(each.frames() for each in shown)
    before = None if dense is None else read(dense, "dense", max(each.layout.frames for each in shown))
    images = max([tokens.images_of(each.trace) for each in shown] + [len(each.picture or ()) for each in shown])
    if before is not None and len(before) != images:
        raise ConfigurationError(f"dense: expected pictures of {images} images, as the runs have, got {len(before)}")
    told = [each.data() for each in shown]
    seconds = [row["seconds"] for one in told for row in one["steps"]]
    widest = max([each.widest() for each in shown] + [max(p.size) for each in before or () for p in each])
    for side in SIDES:
        data = {
            "title": title,
            "images": images,
            "frames": frames,
            "dense": None if before is None else Encoder(side).encode(before),
            "runs": [one | each.pictures(side) for one, each in zip(told, shown, strict=True)],
            "cut": min(max(seconds), CUT * median(seconds)),
            "scaled": side if widest > side else None,
        }
        page = _render(data)
        if len(page.encode()) <= LIMIT:
            return page
    raise ConfigurationError(
        f"save_html: expected a page of at most {LIMIT / 1e6:g} MB, got {len(page.encode()) / 1e6:.1f} MB with "
        f"pictures of {SIDES[-1]} pixels a side; give fewer runs, images or previews"
    )


def _read(name: str, run: Run | Traced) -> _Shown:
    """A run with its pictures read, and checked against its trace."""
    one = run if isinstance(run, Run) else Run(run)
    if not isinstance(one.trace, Traced):
        raise ConfigurationError(
            f"runs: {name}: expected a Trace, such as handle.trace, got a {type(one.trace).__name__}"
        )
    if not one.trace.steps:
        raise TraceError(f"runs: {name}: expected a trace with steps, got none; draw a picture before")
    layout, steps = Layout.of(one.trace.grid), len(one.trace.steps)
    images = tokens.images_of(one.trace)
    expected = None if images == 1 else images  # a model may have one selection for a whole batch
    picture = None if one.picture is None else read(one.picture, f"runs: {name}: picture", layout.frames, expected)
    count = expected or (None if picture is None else len(picture))
    previews = {}
    for step, pictures in one.previews.items():
        if not isinstance(step, int) or not 0 <= step < steps:
            raise ConfigurationError(f"runs: {name}: previews: expected steps from 0 to {steps - 1}, got {step!r}")
        previews[step] = read(pictures, f"runs: {name}: previews[{step}]", layout.frames, count)
    return _Shown(name, one.trace, layout, picture, previews)


def _render(data: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    here = files("tokenprune.reports.viewer")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "template.html.jinja").read_text(encoding="utf-8"))
    own = {name: (here / f"viewer.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return template.render(data=data, **own)
