from __future__ import annotations

from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenprune.embedded import scenes
from tokenprune.embedded.scenes import COLOURS, POSITIONS, SHAPES, SIZES, TEXTURES, Scene, Thing
from tokenprune.embedded.score import Reading, SceneScore, Tally, compare, read_scene, score, total

Picture = NDArray[np.uint8]
SCENES = [scenes.sample_scene(seed, "tuning") for seed in range(180)]
THINGS_EXPECTED = sum(scenes.THING_COUNTS) / len(scenes.THING_COUNTS)
# A picture that has nothing to do with the scene agrees with one value in so many; a place holds a thing in as
# many pictures out of nine as there are things. What is not found is wrong, which can only make it less.
CHANCE = {
    "background": 1 / len(COLOURS),
    "position": THINGS_EXPECTED / len(POSITIONS),
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "texture": 1 / len(TEXTURES),
    "size": 1 / len(SIZES),
}
PAIR = Scene(
    "blue",
    (Thing("red", "ring", "striped", "large", "top left"), Thing("white", "star", "plain", "small", "bottom")),
    "",
)
ALTERED = {"colour": "yellow", "shape": "square", "texture": "checkered", "size": "small", "position": "right"}

things = st.builds(
    Thing,
    st.sampled_from(list(COLOURS)),
    st.sampled_from(SHAPES),
    st.sampled_from(TEXTURES),
    st.sampled_from(list(SIZES)),
    st.sampled_from(list(POSITIONS)),
)
things_apart = st.lists(things, max_size=3, unique_by=lambda thing: thing.position).map(tuple)


@pytest.fixture(scope="module")
def readings() -> list[Reading]:
    return [read_scene(scenes.render(scene)) for scene in SCENES]


def noisy(picture: Picture, rng: np.random.Generator, sigma: float = 8) -> Picture:
    return (picture + rng.normal(0, sigma, picture.shape)).round().clip(0, 255).astype(np.uint8)


def blurred(picture: Picture) -> Picture:
    """Averaged with weights 1, 2, 1 along both sides."""
    padded = np.pad(picture.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return ((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4).round().astype(np.uint8)


def score_all(pictures: list[Picture], of: list[Scene]) -> SceneScore:
    return total(score(picture, scene) for picture, scene in zip(pictures, of, strict=True))


def one_fewer(scene_score: SceneScore, *names: str) -> SceneScore:
    """The score with one fewer right in each of the attributes named."""
    tallies = scene_score.tallies
    return SceneScore(**{n: Tally(t.right - (n in names), t.asked) for n, t in tallies.items()})


def redrawn(scene: Scene, **attributes: Any) -> Picture:
    """The picture of the scene with attributes of its first thing altered."""
    return scenes.render(replace(scene, things=(replace(scene.things[0], **attributes), *scene.things[1:])))


def perfect(scene: Scene) -> SceneScore:
    return compare(Reading(scene.background, scene.things), scene)


def test_clean_pictures_read_as_their_scenes(readings: list[Reading]) -> None:
    scored = total(map(compare, readings, SCENES))
    assert min(scored.per_attribute.values()) > 0.99, scored.per_attribute


@pytest.mark.parametrize("side", [128, 100, 48])
def test_pictures_of_other_sides_read_as_their_scenes(side: int) -> None:
    some = SCENES[:50]
    scored = score_all([scenes.render(scene, side) for scene in some], some)
    assert min(scored.per_attribute.values()) > 0.98, scored.per_attribute


def test_mild_noise_and_blur_change_little() -> None:
    rng, some = np.random.default_rng(0), SCENES[:80]
    for spoilt in ([noisy(scenes.render(scene), rng) for scene in some], [blurred(scenes.render(s)) for s in some]):
        scored = score_all(spoilt, some)
        assert min(scored.per_attribute.values()) > 0.95, scored.per_attribute


def test_random_noise_scores_no_better_than_chance() -> None:
    rng, some = np.random.default_rng(0), SCENES[:50]
    scored = score_all([rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in some], some)
    assert scored.per_attribute["background"] < CHANCE["background"] + 0.1
    assert all(scored.per_attribute[name] == 0 for name in CHANCE if name != "background")


def test_a_blank_picture_shows_its_background_only() -> None:
    scored = score(scenes.render(replace(PAIR, things=())), PAIR)
    assert scored == SceneScore(Tally(1, 1), *[Tally(0, 2)] * 5)


def test_pictures_of_other_scenes_score_near_chance(readings: list[Reading]) -> None:
    scored = total(map(compare, readings, SCENES[1:] + SCENES[:1]))
    for name, chance in CHANCE.items():
        assert chance / 3 < scored.per_attribute[name] < chance + 0.04, name


@pytest.mark.parametrize("name", list(ALTERED))
@pytest.mark.parametrize("start", [PAIR, replace(PAIR, things=PAIR.things[:1])], ids=["two things", "one thing"])
def test_one_altered_attribute_is_the_only_one_wrong(start: Scene, name: str) -> None:
    assert score(redrawn(start, **{name: ALTERED[name]}), start) == one_fewer(perfect(start), name)


def test_an_altered_background_is_the_only_one_wrong() -> None:
    picture = scenes.render(replace(PAIR, background="orange"))
    assert score(picture, PAIR) == one_fewer(perfect(PAIR), "background")


@pytest.mark.parametrize("name", list(ALTERED))
def test_altered_attributes_of_drawn_scenes(name: str) -> None:
    for scene in SCENES[:12]:
        here, free = scene.things[0], [p for p in POSITIONS if p not in {thing.position for thing in scene.things}]
        values = {"colour": list(COLOURS), "shape": SHAPES, "texture": TEXTURES, "size": list(SIZES), "position": free}
        taken = (getattr(here, name), scene.background)
        other = next(value for value in values[name] if value not in taken)
        assert score(redrawn(scene, **{name: other}), scene) == one_fewer(perfect(scene), name)


def test_a_missing_thing_is_wrong_in_every_attribute_but_the_background() -> None:
    picture = scenes.render(replace(PAIR, things=PAIR.things[:1]))
    assert score(picture, PAIR) == one_fewer(perfect(PAIR), *ALTERED)


def test_a_thing_not_asked_for_is_one_more_position_and_wrong() -> None:
    one = replace(PAIR, things=PAIR.things[:1])
    assert score(scenes.render(PAIR), one) == perfect(one) + SceneScore(position=Tally(0, 1))


def test_things_that_changed_places_are_judged_by_where_they_stand() -> None:
    first, second = PAIR.things
    swapped = (replace(first, position=second.position), replace(second, position=first.position))
    expected = SceneScore(Tally(1, 1), Tally(2, 2), *[Tally(0, 2)] * 4)
    assert score(scenes.render(replace(PAIR, things=swapped)), PAIR) == expected


def test_misplaced_things_are_each_looked_for_where_they_are_nearest() -> None:
    first, second = PAIR.things
    moved = (replace(second, position="bottom right"), replace(first, position="top"))
    expected = SceneScore(Tally(1, 1), Tally(0, 2), *[Tally(2, 2)] * 4)
    assert compare(Reading("blue", moved), PAIR) == expected


def test_only_what_the_caption_names_is_judged() -> None:
    for scene in SCENES[:20]:
        bare = replace(
            scene, things=tuple(Thing(t.colour, t.shape, t.texture, t.size, t.position) for t in scene.things)
        )
        assert score(scenes.render(scene), bare) == perfect(bare)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (-1, -1), (0, 1)])
def test_a_shift_by_a_pixel_changes_little(dx: int, dy: int) -> None:
    some = SCENES[:25]
    pictures = [np.roll(scenes.render(scene), (dy, dx), (0, 1)) for scene in some]
    assert score_all(pictures, some).accuracy > 0.98


@settings(deadline=None)
@given(things_apart, things_apart)
def test_tallies_stay_within_what_is_asked(asked: tuple[Thing, ...], seen: tuple[Thing, ...]) -> None:
    scored = compare(Reading("red", seen), Scene("red", asked, ""))
    for tally in scored.tallies.values():
        assert 0 <= tally.right <= tally.asked
    assert scored.background == Tally(1, 1)
    assert scored.colour.asked == scored.size.asked == len(asked)
    assert scored.position.asked == max(len(asked), len(seen))
    assert scored.position.right == len({t.position for t in asked} & {t.position for t in seen})


@settings(deadline=None)
@given(things_apart)
def test_a_perfect_reading_scores_one(asked: tuple[Thing, ...]) -> None:
    assert perfect(Scene("red", asked, "")).accuracy == 1


def test_scores_add_up() -> None:
    scored = [perfect(PAIR), compare(Reading("red", ()), PAIR)]
    both = total(scored)
    assert both == scored[0] + scored[1] == SceneScore(Tally(1, 2), *[Tally(2, 4)] * 5)
    assert both.accuracy == both.per_attribute["shape"] == 0.5
    assert list(both.per_attribute) == ["background", "position", "colour", "shape", "texture", "size"]
    assert isnan(total([]).accuracy)


@pytest.mark.parametrize(
    "picture", [np.zeros((64, 64), np.uint8), np.zeros((64, 32, 3), np.uint8), np.zeros((8, 8, 3))]
)
def test_other_arrays_are_refused(picture: Picture) -> None:
    with pytest.raises(ValueError, match=r"picture: expected uint8 \[S, S, 3\], got"):
        read_scene(picture)
