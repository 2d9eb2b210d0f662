from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenprune.embedded import scenes
from tokenprune.embedded.scenes import COLOURS, POSITIONS, SHAPES, SIZES, TEXTURES, WORDS, Scene, Split, Thing

SCENES_DRAWN: dict[Split, int] = {"train": 3000, "tuning": 700, "held-out": 700}
SPLITS = tuple(SCENES_DRAWN)
THING = Thing("red", "circle", "plain", "large", "center")
seeds = st.integers(min_value=0, max_value=2**32 - 1)
splits = st.sampled_from(SPLITS)


@pytest.fixture(scope="module")
def drawn() -> dict[Split, list[Scene]]:
    return {split: [scenes.sample_scene(seed, split) for seed in range(count)] for split, count in SCENES_DRAWN.items()}


def content(scene: Scene) -> tuple[str, frozenset[tuple[str, ...]]]:
    return scene.background, frozenset((t.colour, t.shape, t.texture, t.size, t.position) for t in scene.things)


def picture_of(*things: Thing, background: str = "white", side: int = 64) -> NDArray[np.float64]:
    return scenes.render(Scene(background, things, ""), side) / 255


def phrases(thing: Thing) -> set[str]:
    words = product(WORDS[thing.size], WORDS.get(thing.texture, (thing.texture,)), WORDS[thing.position])
    return {
        " ".join(word for word in ("a", size, texture, thing.colour, thing.shape, place) if word)
        for size, texture, place in words
    }


@settings(max_examples=30, deadline=None)
@given(seeds, splits)
def test_the_same_seed_gives_the_same_scene_and_picture(seed: int, split: Split) -> None:
    first, second = scenes.sample_scene(seed, split), scenes.sample_scene(seed, split)
    assert first == second
    assert np.array_equal(scenes.render(first), scenes.render(second))


def test_seeds_give_different_scenes(drawn: dict[Split, list[Scene]]) -> None:
    assert all(len(set(drawn[split])) == count for split, count in SCENES_DRAWN.items())


def test_captions_counts_from_its_start(drawn: dict[Split, list[Scene]]) -> None:
    expected = [(scene.caption, scene) for scene in drawn["tuning"][5:12]]
    assert list(scenes.captions("tuning", 7, start=5)) == expected


@pytest.mark.parametrize("split", SPLITS)
def test_a_caption_names_exactly_the_attributes_of_its_scene(drawn: dict[Split, list[Scene]], split: Split) -> None:
    for scene in drawn[split]:
        ground = f"{'an' if scene.background == 'orange' else 'a'} {scene.background} background"
        pattern = rf"(.+), on {ground}|{ground} with (.+)|(.+) over {scene.background}"
        found = re.fullmatch(pattern, scene.caption)
        assert found is not None, scene.caption
        listing = next(part for part in found.groups() if part)
        parts = re.split(r", | and ", listing)
        assert len(parts) == len(scene.things)
        assert all(part in phrases(thing) for part, thing in zip(parts, scene.things, strict=True)), scene.caption


def test_no_word_stands_for_two_values() -> None:
    words = Counter(word for words in WORDS.values() for word in set(words) if word)
    assert set(words.values()) == {1}


def test_things_differ_from_the_background_and_stand_in_different_places(drawn: dict[Split, list[Scene]]) -> None:
    for scene in (scene for split in SPLITS for scene in drawn[split]):
        assert all(thing.colour != scene.background for thing in scene.things)
        assert len({thing.position for thing in scene.things}) == len(scene.things)
        assert 1 <= len(scene.things) <= max(scenes.THING_COUNTS)


def test_every_value_is_drawn_about_as_often_as_its_siblings(drawn: dict[Split, list[Scene]]) -> None:
    things = [thing for scene in drawn["train"] for thing in scene.things]
    values = {"colour": COLOURS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES, "position": POSITIONS}
    for name, siblings in values.items():
        shares = np.array([sum(getattr(thing, name) == value for thing in things) for value in siblings]) / len(things)
        assert np.allclose(shares * len(siblings), 1, atol=0.2), name


def test_splits_share_neither_captions_nor_content(drawn: dict[Split, list[Scene]]) -> None:
    for a, b in combinations(SPLITS, 2):
        assert {scene.caption for scene in drawn[a]}.isdisjoint(scene.caption for scene in drawn[b])
        assert {content(scene) for scene in drawn[a]}.isdisjoint(content(scene) for scene in drawn[b])


def test_a_scene_is_in_the_split_it_was_drawn_for_in_any_order(drawn: dict[Split, list[Scene]]) -> None:
    for split in SPLITS:
        assert all(scenes.split_of(scene.background, scene.things[::-1]) == split for scene in drawn[split])


def test_tuning_and_held_out_take_a_fiftieth_each() -> None:
    grid = product(COLOURS, COLOURS, SHAPES, TEXTURES, SIZES, POSITIONS)
    counts = Counter(
        scenes.split_of(ground, (Thing(colour, shape, texture, size, place),))
        for ground, colour, shape, texture, size, place in grid
        if ground != colour
    )
    assert counts["tuning"] / counts.total() == pytest.approx(1 / 50, rel=0.1)
    assert counts["held-out"] / counts.total() == pytest.approx(1 / 50, rel=0.1)


@pytest.mark.parametrize(
    ("name", "values"),
    [("shape", SHAPES), ("texture", TEXTURES), ("size", tuple(SIZES)), ("colour", tuple(COLOURS)[:7])],
)
def test_every_value_renders_differently(name: str, values: tuple[str, ...]) -> None:
    alterations: list[dict[str, Any]] = [{name: value} for value in values]
    pictures = [picture_of(replace(THING, **altered)) for altered in alterations]
    blank = picture_of()
    drawn_area = [(abs(picture - blank).sum(-1) > 0.1).sum() for picture in pictures]
    for (a, area), (b, other) in combinations(zip(pictures, drawn_area, strict=True), 2):
        assert (abs(a - b).sum(-1) > 0.1).sum() > 0.1 * min(area, other)


def test_every_texture_and_angle_renders_differently() -> None:
    things = [replace(THING, texture=texture, stripe_angle=angle) for texture, angle in scenes.all_textures()]
    assert len(things) == len(TEXTURES) - 1 + len(scenes.STRIPE_ANGLES)
    for a, b in combinations(map(picture_of, things), 2):
        assert (abs(a - b).sum(-1) > 0.1).sum() > 50


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_sizes_of_pictures_agree_after_downsampling(seed: int) -> None:
    scene = scenes.sample_scene(seed)
    small, large = (scenes.render(scene, side).astype(float) for side in (64, 128))
    difference = abs(large.reshape(64, 2, 64, 2, 3).mean((1, 3)) - small)
    assert difference.mean() < 1
    assert difference.max() < 0.2 * 255


@pytest.mark.parametrize(("shape", "size", "position"), list(product(SHAPES, SIZES, POSITIONS)))
def test_things_lie_inside_the_picture(shape: str, size: str, position: str) -> None:
    outwards = [scenes.POSITION_JITTER * np.sign(at - 0.5) for at in POSITIONS[position]]
    outermost = Thing("white", shape, "plain", size, position, (outwards[0], outwards[1]), 1 + scenes.SIZE_JITTER)
    in_the_middle = replace(outermost, position="center", shift=(0.0, 0.0))
    blank, there, whole = (picture_of(*things, background="black") for things in ((), (outermost,), (in_the_middle,)))
    assert (there - blank).sum() > 0.96 * (whole - blank).sum()


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_the_background_is_its_colour_shaded_by_at_most_a_quarter(seed: int) -> None:
    scene = scenes.sample_scene(seed)
    ground = scenes.render(replace(scene, things=())) / 255
    colour = np.array(COLOURS[scene.background])
    rounding = 1 / 255
    assert (ground <= colour + rounding).all()
    assert (ground >= (1 - scenes.SHADE) * colour - rounding).all()


@pytest.mark.parametrize("colour", COLOURS)
def test_ink_stands_out_from_its_colour(colour: str) -> None:
    paint = np.array([COLOURS[colour]], dtype=np.float32)
    ink = scenes.ink_of(paint)
    assert ((ink >= 0) & (ink <= 1)).all()
    assert np.linalg.norm(ink - paint) > 0.4


def test_unknown_shapes_and_textures_are_refused() -> None:
    line = np.linspace(-1, 1, 5, dtype=np.float32)
    with pytest.raises(ValueError, match=r"shape: expected one of .* got 'hexagon'"):
        scenes.inside("hexagon", line, line)
    with pytest.raises(ValueError, match=r"texture: expected one of .* got 'wavy'"):
        scenes.inked("wavy", line, line)
