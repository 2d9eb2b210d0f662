"""Reading captions back into scenes, so that the picture of any such prompt can be scored."""

from __future__ import annotations

import re

from tokenprune.embedded import scenes
from tokenprune.embedded.scenes import COLOURS, SHAPES, WORDS, Scene, Thing


def _pattern(name: str, values: tuple[str, ...]) -> str:
    words = [word for value in values for word in WORDS.get(value, (value,)) if word]
    return f"(?P<{name}>{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})"


_THING = re.compile(
    rf"\ba {_pattern('size', tuple(scenes.SIZES))} (?:{_pattern('texture', scenes.TEXTURES)} )?"
    rf"{_pattern('colour', tuple(COLOURS))} {_pattern('shape', SHAPES)} {_pattern('position', tuple(scenes.POSITIONS))}"
)
_BACKGROUND = re.compile(rf"{_pattern('before', tuple(COLOURS))} background|over {_pattern('after', tuple(COLOURS))}")
_VALUE_OF = {word: value for value, words in WORDS.items() for word in words if word}


def parse_caption(caption: str) -> Scene | None:
    """The scene that a caption names, or None where it does not read like a caption of `scenes`.

    A caption gives each thing's size, colour, shape and place; a texture may be left out (plain).
    """
    background = _BACKGROUND.search(caption.lower())
    things = tuple(
        Thing(
            colour=found["colour"],
            shape=found["shape"],
            texture=found["texture"] or "plain",
            size=_VALUE_OF[found["size"]],
            position=_VALUE_OF[found["position"]],
        )
        for found in _THING.finditer(caption.lower())
    )
    if background is None or not things:
        return None
    return Scene(background["before"] or background["after"], things, caption)
