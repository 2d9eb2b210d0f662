"""Names of points in a plot, each where it covers no other name and as few points as can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

SIZE = 7.5
"""Points of the letters' height."""

NEAR = 8.0
"""Points from a marker's middle to a name beside it."""

REACH = 90.0
"""Points that a name may be away from its marker, at most; a line leads to it then."""

SIDES = ((-1, 0), (1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1), (0, 1), (0, -1))
"""Where a name may stand: left, right, and so on, in the order that they are tried in."""


@dataclass(frozen=True)
class Label:
    """A name of a point, in the axes' data coordinates."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Marker:
    """A point in data coordinates, with an interval of `half` up and down."""

    x: float
    y: float
    half: float = 0.0


def place(axis: Any, labels: Iterable[Label], markers: Sequence[Marker], colour: str) -> list[str]:
    """Write the names, those that come first at the best places; gives those that found no room and are not written.

    Args:
        axis: laid out already: its figure was drawn, and its limits stay.
        labels: the most important ones first.
        markers: all points, which names should not cover.
        colour: of the names.
    """
    figure = axis.figure
    pixels = figure.dpi / 72
    frame = axis.get_window_extent()
    covered = [_around(axis.transData.transform((one.x, one.y)), 5 * pixels, 5 * pixels) for one in markers]
    covered += [
        Bbox([axis.transData.transform((one.x, one.y - one.half)), axis.transData.transform((one.x, one.y + one.half))])
        for one in markers
    ]
    taken: list[Bbox] = []
    left_out = []
    for label in labels:
        text = axis.annotate(label.text, (label.x, label.y), fontsize=SIZE, color=colour, annotation_clip=False)
        text.set_in_layout(False)
        size = text.get_window_extent()
        at = axis.transData.transform((label.x, label.y))
        found = _best(at, size.width, size.height, pixels, frame, taken, covered)
        text.remove()
        if found is None:
            left_out.append(label.text)
            continue
        box, (across, up), away = found
        taken.append(box)
        axis.annotate(
            label.text,
            (label.x, label.y),
            ((box.x0 - at[0]) / pixels, (box.y0 - at[1]) / pixels),
            textcoords="offset points",
            fontsize=SIZE,
            color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # readable where a line runs behind it
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.4,
                "relpos": ((1 - across) / 2, (1 - up) / 2),
            }
            if away > NEAR
            else None,
        ).set_in_layout(False)
    return left_out


def _best(
    at: Any, width: float, height: float, pixels: float, frame: Bbox, taken: Sequence[Bbox], markers: Sequence[Bbox]
) -> tuple[Bbox, tuple[int, int], float] | None:
    """The free place nearest to a point that covers the fewest markers; None where there is none."""
    free = [
        (sum(box.overlaps(marker) for marker in markers) + away / REACH, order, box, side, away)
        for order, (box, side, away) in enumerate(_places(at, width, height, pixels))
        if frame.containsx(box.x0) and frame.containsx(box.x1) and frame.containsy(box.y0) and frame.containsy(box.y1)
        if not any(box.overlaps(other) for other in taken)
    ]
    if not free:
        return None
    *_, box, side, away = min(free, key=lambda place: place[:2])
    return box, side, away


def _places(at: Any, width: float, height: float, pixels: float) -> Iterator[tuple[Bbox, tuple[int, int], float]]:
    """Boxes around a point, ever farther away."""
    away = NEAR
    while away <= REACH:
        for across, up in SIDES:
            x = at[0] + across * (away * pixels + width / 2)
            y = at[1] + up * (away * pixels + height / 2 if not across else away * pixels)
            yield _around((x, y), width / 2, height / 2), (across, up), away
        away *= 1.5


def _around(middle: Any, width: float, height: float) -> Bbox:
    return Bbox.from_extents(middle[0] - width, middle[1] - height, middle[0] + width, middle[1] + height)
