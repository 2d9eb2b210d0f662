"""The page on other caches: their settings exist under these names, and our side of it runs and keeps its cost."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import tokenprune
from tokenprune import CacheConflictError, Plan
from tokenprune.embedded.load import load_shapes_sd3

PAGE = (Path(tokenprune.__file__).parents[1] / "docs" / "migrate.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", PAGE, re.M))
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STEPS = 10


def settings(section: str) -> set[str]:
    rows = re.findall(r"^\| (`[^|]+) \|", SECTIONS[section], re.M)
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_shapes_sd3()


@pytest.fixture(scope="module")
def scope(pipe: Any) -> dict[str, Any]:
    """The names that the page's codes make."""
    found: dict[str, Any] = {"pipe": pipe, "tokenprune": tokenprune}
    for code in CODE:
        exec(code, found)
        if "handle" in found:
            found.pop("handle").remove()
    return found


def fields(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def test_settings_of_cache_dit() -> None:
    cache_dit = pytest.importorskip("cache_dit", reason="the peer cache-dit is not installed")
    known = fields(cache_dit.DBCacheConfig) | fields(cache_dit.TaylorSeerCalibratorConfig)
    assert len(settings("cache-dit")) > 8
    assert settings("cache-dit") - known == set()


def test_settings_of_diffusers() -> None:
    import diffusers

    named = settings("Caches of diffusers")
    assert len(named) > 10
    for name in named:
        config, _, setting = name.partition(".")
        assert setting in fields(getattr(diffusers, config)), name


def test_the_plans_of_the_page_compute_the_steps_that_they_say(pipe: Any, scope: dict[str, Any]) -> None:
    def full(plan: Plan) -> list[int]:
        with tokenprune.apply(pipe, plan) as handle:
            pipe("a red circle", num_inference_steps=STEPS, max_sequence_length=1)
            return [step.step for step in handle.report().steps if step.full]

    assert full(scope["mask"]) == [0, 1, 2, 4, 6, 9]
    assert full(scope["like_taylorseer"]) == [0, 1, 2, 3, 6, 9]


def test_another_cache_is_refused_until_it_is_removed_as_the_page_says() -> None:
    cache_dit = pytest.importorskip("cache_dit", reason="the peer cache-dit is not installed")
    pipe = load_shapes_sd3()
    cache_dit.enable_cache(pipe, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1))
    with pytest.raises(CacheConflictError, match="cache_dit"):
        tokenprune.apply(pipe, tokenprune.plan(pipe, speedup=2))
    cache_dit.disable_cache(pipe)
    tokenprune.apply(pipe, tokenprune.plan(pipe, speedup=2)).remove()
