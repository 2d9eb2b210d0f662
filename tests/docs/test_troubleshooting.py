"""Troubleshooting: every error class has its entry, and the messages that it quotes are those of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tokenprune
from tokenprune import errors

ROOT = Path(tokenprune.__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", PAGE, re.M))
CLASSES = [
    name
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, errors.TokenPruneError)
]
QUOTED = [
    part.strip()
    for name in (*CLASSES, "No error, but something is wrong")
    for quote in re.findall(r'^(?:\| )?("[^"]+"(?:, "[^"]+")*)', SECTIONS.get(name, ""), re.M)
    for text in re.findall(r'"([^"]+)"', quote)
    for part in text.split("...")
    if part.strip()
]


def texts() -> list[str]:
    """The texts of the package's code, with "{}" for what is filled in."""
    found = []
    for folder in ("tokenprune", "adapters"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                    found.append("".join(map(str, parts)))
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_class_has_an_entry(name: str) -> None:
    assert name in SECTIONS
    if name != "TokenPruneError":
        assert "**Meaning.**" in SECTIONS[name]
        assert "what to do" in SECTIONS[name].lower()


def test_every_entry_is_in_the_list_at_the_top_and_is_a_public_name() -> None:
    top = PAGE.split("\n## ")[0]
    for name in CLASSES:
        assert f"(#{name.lower()})" in top
        assert hasattr(tokenprune, name)
    assert len(CLASSES) > 10


def test_the_messages_that_it_quotes_are_the_packages() -> None:
    known = "\n".join(texts())
    assert len(QUOTED) > 12
    assert [quote for quote in QUOTED if quote not in known] == []


def test_the_first_code_says_why_a_model_is_drawn_without_pruning(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    exec(code[1], {"tokenprune": tokenprune, "pipe": __import__("torch").nn.Linear(2, 2)})
    assert capsys.readouterr().out.startswith("drawing without pruning: Linear: ")
