"""The tables of docs/scale.md are what the models' sizes give, and the sizes are what the models have."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scale_table.py, which lies beside this file."""
    spec = importlib.util.spec_from_file_location("scale_table", Path(__file__).with_name("scale_table.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["scale_table"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mark", ["needs", "fits", "offloading", "ulysses", "spread", "many"])
def test_a_table_is_what_the_sizes_give(script: ModuleType, mark: str) -> None:
    assert mark in script.TABLES
    start, end = (f"<!-- scale-{mark}: {word} -->\n" for word in ("start", "end"))
    assert script.PAGE.read_text().split(start)[1].split(end)[0] == script.table(mark, script.read())


def test_there_are_no_other_models(script: ModuleType) -> None:
    assert list(script.read()) == list(script.MODELS)


def test_a_models_sizes_are_counted_as_they_were(script: ModuleType) -> None:
    """One that is built in little time; all of them need minutes. Other versions of torch compute in other steps."""
    name = "Wan 2.1 1.3B"
    found, before = script.measure(script.MODELS[name]()), script.read()[name]
    if json.loads(script.SIZES.read_text())["versions"]["torch"] != version("torch"):
        found = replace(found, activations=before.activations)
    assert found == before


@pytest.fixture
def size(script: ModuleType) -> object:
    """Numbers that can be reckoned with in the head: 10 image tokens and 6 of text, 2 rows, 8 wide, 3 layers."""
    counted = {"parameters": 50, "tokens": 10, "text": 6, "rows": 2, "calls": 1, "attentions": 3, "width": 8}
    return script.Size(**counted, block=5, activations=20, macs=1e12, cat_macs=5e11, plan_bytes=1, cat_bytes=40)


def test_what_a_rank_sends(size: object) -> None:
    # half of 16 tokens in 2 rows of 8 numbers of 2 bytes, four times (q, k, v, o), of which half goes to the other one
    assert size.sent(10, 2) == 8 * 2 * 8 * 2 * 4 / 2
    assert size.sent(2, 2) == size.sent(10, 2) * 8 / 16
    assert size.sent(10, 4) == 4 * 2 * 8 * 2 * 4 * 3 / 4
    assert size.sent_in_all((10, 0, 2), 2) == 3 * (size.sent(10, 2) + size.sent(2, 2))
    assert size.passed(10) == 2 * 16 * 8 * 2


def test_the_way_that_fits(script: ModuleType, size: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "GIB", 10)
    monkeypatch.setattr(script, "SPARE", 1.0)
    # weights 100, activations 20, two blocks 20
    ways = {14: "whole", 13: "offloaded", 6: "offloaded"}
    assert {gib: script.way(size, gib, 20) for gib in ways} == ways
    assert script.way(size, 20, 170) == "Ulysses, 2 GPUs"
    assert script.way(size, 13, 170) == "Ulysses, 8 GPUs"
    assert script.way(size, 9, 170) == "`device_map`, 4 GPUs"
    assert script.way(size, 5, 170) == "not on 8"


def test_the_steps_are_those_of_the_plans(script: ModuleType) -> None:
    found = script.counts(100)
    assert found["plain"] == (100,) * 28
    assert sorted(found["plan"]) == [0] * 14 + [100] * 14
    assert found["CAT"] == (100,) * 8 + (30,) * 20


def test_the_tests_that_the_page_names_are_there(script: ModuleType) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", script.PAGE.read_text())
    assert len(named) == 7
    for path, name in named:
        tree = ast.parse((script.DOCS.parent / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_way_says_whether_it_was_tried(script: ModuleType) -> None:
    rows = script.PAGE.read_text().split("| tried here |\n")[1].split("\n\n")[0].splitlines()[1:]
    assert len(rows) == 7
    assert all("tests/" in row.split(" | ")[-1] or row.split(" | ")[-1] == "by arithmetic |" for row in rows)


def test_who_waits_for_weights(script: ModuleType) -> None:
    waiting = {
        name
        for name, size in script.read().items()
        if size.weights / script.PCIE > 2 * size.macs / (script.STEPS * size.calls) / script.ACHIEVED
    }
    assert waiting == {"FLUX.1-dev", "Qwen-Image"}
    assert "FLUX.1-dev and Qwen-Image wait for their weights" in script.PAGE.read_text()


def test_the_space_of_pictures(script: ModuleType) -> None:
    assert f"**{script.PROMPTS * 3 * 1024**2 / script.GIB:.0f} GiB for 100,000**" in script.PAGE.read_text()
    assert f"4 KiB: {script.PROMPTS * 4096 / script.GIB:.1f} GiB" in script.PAGE.read_text()
