"""Captioned scenes drawn by formula: what the embedded models are trained and scored on.

A scene is one to three things (colour, shape, texture, size, place) over a shaded background. Everything a
caption names is an exact word from the tuples below; everything else (small shifts, the angle of stripes,
the direction of the shading) is drawn at random, so that a caption has many pictures.

Coordinates are fractions of the picture's side, so one scene renders at any resolution.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Array = NDArray[np.float32]
Split = Literal["train", "tuning", "held-out"]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.12, 0.28, 0.92),
    "yellow": (0.97, 0.88, 0.12),
    "orange": (0.98, 0.52, 0.05),
    "purple": (0.55, 0.13, 0.72),
    "cyan": (0.15, 0.82, 0.88),
    "white": (0.97, 0.97, 0.97),
    "black": (0.08, 0.08, 0.08),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES: dict[str, float] = {"small": 0.095, "large": 0.150}  # radius
POSITIONS: dict[str, tuple[float, float]] = {  # centre, (x, y), y down
    "top left": (1 / 6, 1 / 6), "top": (1 / 2, 1 / 6), "top right": (5 / 6, 1 / 6),
    "left": (1 / 6, 1 / 2), "center": (1 / 2, 1 / 2), "right": (5 / 6, 1 / 2),
    "bottom left": (1 / 6, 5 / 6), "bottom": (1 / 2, 5 / 6), "bottom right": (5 / 6, 5 / 6),
}  # fmt: skip
STRIPE_ANGLES = (0.0, 0.25 * np.pi, 0.5 * np.pi, 0.75 * np.pi)
TEXTURE_PERIOD = 0.094  # six pixels on a 64-pixel picture
POSITION_JITTER = 0.012
SIZE_JITTER = 0.05
SHADE = 0.25  # how much darker the background gets from one side to the other
SUPERSAMPLING = 4
THING_COUNTS = (1, 1, 2, 2, 3)

_TEMPLATES = ("{things}, on {a} {bg} background", "{a} {bg} background with {things}", "{things} over {bg}")
WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "plain": ("", "", "plain"),
    "top left": ("at the top left", "in the top left corner"),
    "top": ("at the top",),
    "top right": ("at the top right", "in the top right corner"),
    "left": ("on the left",),
    "center": ("in the center", "in the middle"),
    "right": ("on the right",),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom": ("at the bottom",),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
}


@dataclass(frozen=True)
class Thing:
    """One object: five named attributes, and what the caption leaves open."""

    colour: str
    shape: str
    texture: str
    size: str
    position: str
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    stripe_angle: float = 0.0

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) as a fraction of the side."""
        x, y = POSITIONS[self.position]
        return x + self.shift[0], y + self.shift[1]

    @property
    def radius(self) -> float:
        """Half the extent, as a fraction of the side."""
        return SIZES[self.size] * self.scale


@dataclass(frozen=True)
class Scene:
    """A background and one to three things, with the caption that names them."""

    background: str
    things: tuple[Thing, ...]
    caption: str
    shade_angle: float = 0.0


def split_of(background: str, things: tuple[Thing, ...]) -> Split:
    """The split a scene belongs to, decided by what its caption names: no caption is in two splits."""
    names = sorted(f"{t.colour} {t.shape} {t.texture} {t.size} {t.position}" for t in things)
    bucket = zlib.crc32("|".join([background, *names]).encode()) % 50
    return "held-out" if bucket == 0 else "tuning" if bucket == 1 else "train"


def sample_scene(seed: int, split: Split = "train") -> Scene:
    """Draw scene number `seed` of a split; the same arguments give the same scene."""
    rng = np.random.default_rng([("train", "tuning", "held-out").index(split), seed])
    while True:
        background, things = _sample_content(rng)
        if split_of(background, things) == split:
            return Scene(background, things, _write_caption(background, things, rng), rng.uniform(0, 2 * np.pi))


def _pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def _sample_content(rng: np.random.Generator) -> tuple[str, tuple[Thing, ...]]:
    background = _pick(rng, list(COLOURS))
    colours = [c for c in COLOURS if c != background]
    places = [list(POSITIONS)[i] for i in rng.permutation(len(POSITIONS))[: _pick(rng, THING_COUNTS)]]
    return background, tuple(
        Thing(
            colour=_pick(rng, colours),
            shape=_pick(rng, SHAPES),
            texture=_pick(rng, TEXTURES),
            size=_pick(rng, list(SIZES)),
            position=place,
            shift=(rng.uniform(-1, 1) * POSITION_JITTER, rng.uniform(-1, 1) * POSITION_JITTER),
            scale=1 + rng.uniform(-1, 1) * SIZE_JITTER,
            stripe_angle=_pick(rng, STRIPE_ANGLES),
        )
        for place in places
    )


def _write_caption(background: str, things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    def word(name: str) -> str:
        return _pick(rng, WORDS.get(name, (name,)))

    phrases = []
    for thing in things:
        adjectives = [word(thing.size), word(thing.texture), thing.colour, thing.shape]
        phrases.append(f"a {' '.join(a for a in adjectives if a)} {word(thing.position)}")
    listing = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    article = "an" if background[0] in "aeiou" else "a"
    return _pick(rng, _TEMPLATES).format(things=listing, a=article, bg=background)


def captions(split: Split, count: int, start: int = 0) -> Iterator[tuple[str, Scene]]:
    """Captions and scenes number `start` to `start + count - 1` of a split."""
    for seed in range(start, start + count):
        scene = sample_scene(seed, split)
        yield scene.caption, scene


def texts(split: Split, count: int) -> list[str]:
    """The first captions of a split, without their scenes."""
    return [caption for caption, _ in captions(split, count)]


def inside(shape: str, x: Array, y: Array) -> NDArray[np.bool_]:
    """Which points belong to a shape of radius 1 around the origin (y down)."""
    r = np.hypot(x, y)
    if shape == "circle":
        return r <= 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.88
    if shape == "triangle":
        return (y <= 0.8) & (y >= 1.9 * np.abs(x) - 1.0)
    if shape == "ring":
        return (r <= 1) & (r >= 0.58)
    if shape == "cross":
        return (np.minimum(np.abs(x), np.abs(y)) <= 0.33) & (np.maximum(np.abs(x), np.abs(y)) <= 1)
    if shape == "star":
        sector = 2 * np.pi / 5
        folded = np.abs(np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2)
        px, py = r * np.cos(folded), r * np.sin(folded)
        tip, (nx, ny) = 1.1, (0.46 * np.cos(sector / 2), 0.46 * np.sin(sector / 2))
        return (nx - tip) * py - ny * (px - tip) >= 0
    raise ValueError(f"shape: expected one of {SHAPES}, got {shape!r}")


def inked(texture: str, x: Array, y: Array, stripe_angle: float = 0.0) -> NDArray[np.bool_]:
    """Which points carry the darker ink of a texture; x, y are offsets from the thing's centre."""
    u, v = x / TEXTURE_PERIOD, y / TEXTURE_PERIOD
    if texture == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    if texture == "striped":
        return np.sin(2 * np.pi * (u * np.cos(stripe_angle) + v * np.sin(stripe_angle)) + 0.5 * np.pi) > 0
    if texture == "dotted":
        return np.hypot(np.mod(u, 1) - 0.5, np.mod(v, 1) - 0.5) < 0.31
    if texture == "checkered":
        return (np.mod(u / 1.1, 1) < 0.5) ^ (np.mod(v / 1.1, 1) < 0.5)
    raise ValueError(f"texture: expected one of {TEXTURES}, got {texture!r}")


def ink_of(colour: Array) -> Array:
    """The second colour of a textured thing: darker, or lighter where the thing is black."""
    return np.where(colour.mean(-1, keepdims=True) < 0.2, colour + 0.55, colour * 0.3).astype(np.float32)


def render(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """Draw a scene as [size, size, 3] RGB bytes, anti-aliased by supersampling."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    slope = (line[None, :] - 0.5) * np.cos(scene.shade_angle) + (line[:, None] - 0.5) * np.sin(scene.shade_angle)
    shade = 1 - SHADE * (slope / np.sqrt(2) + 0.5)
    picture = shade[..., None] * np.asarray(COLOURS[scene.background], dtype=np.float32)
    for thing in scene.things:
        _draw(picture, thing)
    return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _draw(picture: Array, thing: Thing) -> None:
    size, (cx, cy), radius = picture.shape[0], thing.centre, thing.radius * 1.15
    x0, x1 = max(0, int((cx - radius) * size)), min(size, int((cx + radius) * size) + 2)
    y0, y1 = max(0, int((cy - radius) * size)), min(size, int((cy + radius) * size) + 2)
    steps = (np.arange(SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    xs = ((np.arange(x0, x1)[:, None] + steps).reshape(1, -1) / size - cx).astype(np.float32)
    ys = ((np.arange(y0, y1)[:, None] + steps).reshape(-1, 1) / size - cy).astype(np.float32)
    mask = inside(thing.shape, xs / thing.radius, ys / thing.radius)
    ink = inked(thing.texture, xs, ys, thing.stripe_angle) & mask
    cover, ink_cover = (_box_mean(m.astype(np.float32), SUPERSAMPLING)[..., None] for m in (mask, ink))
    colour = np.asarray(COLOURS[thing.colour], dtype=np.float32)
    patch = picture[y0:y1, x0:x1]
    patch[:] = patch * (1 - cover) + colour * (cover - ink_cover) + ink_of(colour) * ink_cover


def _box_mean(values: Array, factor: int) -> Array:
    h, w = values.shape
    return values.reshape(h // factor, factor, w // factor, factor).mean((1, 3))


def all_textures() -> list[tuple[str, float]]:
    """Every (texture, stripe angle) that `render` can draw."""
    return [(t, a) for t, a in product(TEXTURES, STRIPE_ANGLES) if t == "striped" or a == 0.0]
