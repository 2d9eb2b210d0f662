"""The scene score: does a picture show what its caption names? Read from the pixels, without any network.

A picture is read by synthesis. A plane is fitted to the background; where a place of the 3x3 grid differs from
it, every thing that `scenes` can draw there is drawn with the same formulas, a little shifted, and the one
nearest to the picture is what the picture shows. A place shows nothing where even the nearest explains less
than a third of the difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import product
from math import dist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.embedded.scenes import (
    COLOURS,
    POSITIONS,
    SHADE,
    SHAPES,
    SIZES,
    SUPERSAMPLING,
    Array,
    Scene,
    Thing,
    all_textures,
    ink_of,
    inked,
    inside,
)

SIDE = 64  # pixels a picture is resampled to before it is read
WINDOW = 22  # pixels; a place is a third of SIDE
SHIFTS = np.arange(-4, 5, dtype=np.float32) / (2 * SIDE)  # of a thing from its window's centre: up to two pixels
BACKGROUND_SHARE = 0.6  # of the pixels; three of the largest things leave more than 0.7
BACKGROUND_FITS = 6
FAINTEST = 2.0  # squared RGB distance summed over a place; the faintest thing drawn has nearly four
EXPLAINED = 1 / 3  # share of a place's difference from the background that a thing has to explain


@dataclass(frozen=True)
class Tally:
    """How many were asked for, and how many of them the picture shows."""

    right: int = 0
    asked: int = 0

    @property
    def accuracy(self) -> float:
        """Share of the asked that are right; nan where nothing was asked."""
        return self.right / self.asked if self.asked else float("nan")

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.right + other.right, self.asked + other.asked)


@dataclass(frozen=True)
class SceneScore:
    """What a picture shows of what its scene names, for one scene or summed over many.

    The background is asked once per scene, everything else once per thing. A thing is judged by what stands in
    its place, or else by the nearest thing that stands where none was asked for; then its position is wrong.
    Where there is none of either, all five attributes are wrong. Every further thing that was not asked for
    counts as one more position that is asked and wrong.
    """

    background: Tally = field(default_factory=Tally)
    position: Tally = field(default_factory=Tally)
    colour: Tally = field(default_factory=Tally)
    shape: Tally = field(default_factory=Tally)
    texture: Tally = field(default_factory=Tally)
    size: Tally = field(default_factory=Tally)

    @property
    def tallies(self) -> dict[str, Tally]:
        """The tally of each attribute by its name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def per_attribute(self) -> dict[str, float]:
        """Accuracy of each attribute by its name, 0 to 1."""
        return {name: tally.accuracy for name, tally in self.tallies.items()}

    @property
    def accuracy(self) -> float:
        """Right by asked over all attributes, 0 to 1."""
        return sum(self.tallies.values(), Tally()).accuracy

    def __add__(self, other: SceneScore) -> SceneScore:
        return SceneScore(**{name: tally + other.tallies[name] for name, tally in self.tallies.items()})


@dataclass(frozen=True)
class Reading:
    """What a picture shows: the background's colour, and at most one thing in each of the nine places."""

    background: str
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class _Candidates:
    """Every drawing of a thing without its colour: N kinds, n = WINDOW**2 pixels."""

    kinds: list[tuple[str, str, str]]  # shape, texture, size
    plain: Array  # [N, n], share of each pixel in the thing's colour
    ink: Array  # [N, n], share of each pixel in its second colour
    products: Array  # [N, 3]: plain.plain, plain.ink, ink.ink


def total(scores: Iterable[SceneScore]) -> SceneScore:
    """The sum of the scores of many pictures."""
    return sum(scores, SceneScore())


def summary(pictures: Iterable[NDArray[np.uint8]], of: Iterable[Scene]) -> dict[str, Any]:
    """The scene score of many pictures and the shares of each attribute, as figures for a result file."""
    whole = total(score(picture, scene) for picture, scene in zip(pictures, of, strict=True))
    return {"scene_score": whole.accuracy, "attributes": dict(whole.per_attribute)}


def score(picture: NDArray[np.uint8], scene: Scene) -> SceneScore:
    """How much of what `scene` names `picture` shows; picture: [S, S, 3] RGB bytes of any side S."""
    return compare(read_scene(picture), scene)


def compare(reading: Reading, scene: Scene) -> SceneScore:
    """The score of a picture that reads as `reading`; of the scene only what its caption names is used."""
    elsewhere = {thing.position: thing for thing in reading.things}
    in_place = [(thing, elsewhere.pop(thing.position, None)) for thing in scene.things]
    pairs = [(thing, seen or _pop_nearest(elsewhere, thing.position)) for thing, seen in in_place]

    def tally(name: str) -> Tally:
        right = sum(seen is not None and getattr(seen, name) == getattr(thing, name) for thing, seen in pairs)
        return Tally(right, len(pairs))

    return SceneScore(
        background=Tally(int(reading.background == scene.background), 1),
        position=tally("position") + Tally(0, len(elsewhere)),
        colour=tally("colour"),
        shape=tally("shape"),
        texture=tally("texture"),
        size=tally("size"),
    )


def read_scene(picture: NDArray[np.uint8]) -> Reading:
    """Read a picture without knowing its caption; picture: [S, S, 3] RGB bytes of any side S."""
    if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"picture: expected uint8 [S, S, 3], got {picture.dtype} {list(picture.shape)}")
    across = _resampling(picture.shape[0])
    pixels = np.einsum("yi,ijc,xj->yxc", across, picture.astype(np.float32) / 255, across, optimize=True)
    ground = _fit_background(pixels)
    background = _background_colour(ground.mean((0, 1)))
    seen = (_read_place(pixels, ground, background, place) for place in POSITIONS)
    return Reading(background, tuple(thing for thing in seen if thing is not None))


def _pop_nearest(things: dict[str, Thing], place: str) -> Thing | None:
    if not things:
        return None
    return things.pop(min(things, key=lambda other: dist(POSITIONS[other], POSITIONS[place])))


@lru_cache(maxsize=8)
def _resampling(side: int) -> Array:
    """[SIDE, side] weights of a row's pixels in each pixel of the resampled row: the share of its extent."""
    left, old_left = np.arange(SIDE)[:, None] / SIDE, np.arange(side)[None, :] / side
    overlap = np.minimum(left + 1 / SIDE, old_left + 1 / side) - np.maximum(left, old_left)
    return (overlap.clip(0) * SIDE).astype(np.float32)


def _fit_background(pixels: Array) -> Array:
    """The plane [SIDE, SIDE, 3] nearest to most of the pixels, by least trimmed squares."""
    line = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    basis = np.stack([np.ones((SIDE, SIDE)), *np.meshgrid(line, line)], -1).reshape(-1, 3).astype(np.float32)
    flat = pixels.reshape(-1, 3)
    plane: Array = np.broadcast_to(np.median(flat, axis=0), flat.shape)
    kept = int(BACKGROUND_SHARE * len(flat))
    for _ in range(BACKGROUND_FITS):
        near = np.argpartition(((flat - plane) ** 2).sum(-1), kept)[:kept]
        plane = basis @ np.linalg.lstsq(basis[near], flat[near], rcond=None)[0]
    return plane.reshape(pixels.shape)


def _background_colour(mean: Array) -> str:
    """The colour that comes nearest to `mean` [3] under some shade that the background may have."""

    def distance(name: str) -> float:
        colour = np.asarray(COLOURS[name], dtype=np.float32)
        shade = np.clip(mean @ colour / (colour @ colour), 1 - SHADE, 1)
        return float(np.linalg.norm(mean - shade * colour))

    return min(COLOURS, key=distance)


def _read_place(pixels: Array, ground: Array, background: str, place: str) -> Thing | None:
    """The thing that explains best how the pixels of a place differ from the ground, if one explains enough."""
    x, y = (round(at * SIDE) - WINDOW // 2 for at in POSITIONS[place])
    window = slice(y, y + WINDOW), slice(x, x + WINDOW)
    local, difference = ground[window].mean((0, 1)), (pixels[window] - ground[window]).reshape(-1, 3)
    energy = float((difference**2).sum())
    if energy < FAINTEST:
        return None
    names = [name for name in COLOURS if name != background]
    colours = np.asarray([COLOURS[name] for name in names], dtype=np.float32)
    explained = _explained(difference, colours - local, ink_of(colours) - local)
    kind, colour = np.unravel_index(explained.argmax(), explained.shape)
    if explained[kind, colour] < EXPLAINED * energy:
        return None
    shape, texture, size = _candidates().kinds[kind]
    return Thing(names[colour], shape, texture, size, place)


def _explained(difference: Array, plain: Array, ink: Array) -> Array:
    """How much each candidate in each of C colours takes off the square of the difference.

    difference: [n, 3] of a place from the ground; plain, ink: [C, 3], the colours' own; returns [N, C].
    """
    drawn = _candidates()
    squares = np.stack([(plain * plain).sum(-1), 2 * (plain * ink).sum(-1), (ink * ink).sum(-1)])
    return 2 * (drawn.plain @ difference @ plain.T + drawn.ink @ difference @ ink.T) - drawn.products @ squares


@lru_cache(maxsize=1)
def _candidates() -> _Candidates:
    steps = WINDOW * SUPERSAMPLING
    line = (((np.arange(steps) + 0.5) / SUPERSAMPLING - WINDOW / 2) / SIDE).astype(np.float32)
    outlines, textures = list(product(SHAPES, SIZES)), all_textures()
    plain, ink = [], []
    for dx, dy in product(SHIFTS, repeat=2):
        x, y = (line - dx)[None, :], (line - dy)[:, None]
        masks = np.stack([inside(shape, x / SIZES[size], y / SIZES[size]) for shape, size in outlines])
        inks = np.stack([inked(texture, x, y, angle) for texture, angle in textures])
        ink.append(_pixel_means(masks[:, None] & inks))
        plain.append(_pixel_means(masks[:, None] & ~inks))
    a, b = np.concatenate(plain), np.concatenate(ink)
    kinds = [(shape, texture, size) for (shape, size), (texture, _) in product(outlines, textures)]
    products = np.stack([(a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)], axis=-1)
    return _Candidates(kinds * len(SHIFTS) ** 2, a, b, products)


def _pixel_means(points: NDArray[np.bool_]) -> Array:
    """[K, L, steps, steps] points -> [K * L, WINDOW**2] shares of each pixel."""
    blocks = points.reshape(-1, WINDOW, SUPERSAMPLING, WINDOW, SUPERSAMPLING)
    return blocks.mean((2, 4), dtype=np.float32).reshape(len(blocks), -1)
