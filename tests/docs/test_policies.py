"""The code of the pages on policies."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokenprune

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)


def test_the_pages_policy_passes_its_check_and_prunes(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    scope: dict[str, Any] = {"model": sd3}
    policy, *others = blocks("write-a-policy.md")
    assert len(policy.splitlines()) < 30
    for code in (policy, *others):
        exec(code, scope)
    with scope["handle"] as handle:
        assert generate(sd3, steps=5).isfinite().all()
        assert [step.tokens for step in handle.report().steps] == [24] * 3 + [7] * 2


def test_the_examples_of_the_table_page_run(sd3: nn.Module) -> None:
    scope: dict[str, Any] = {**vars(tokenprune), "tokenprune": tokenprune, "torch": torch, "model": sd3}
    for code in blocks("policies.md"):
        exec(code, scope)
    assert isinstance(scope["policy"], tokenprune.MixturePolicy)


def test_the_table_names_every_policy() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "policies.md").read_text(), re.M))
    assert named == set(tokenprune.policies.__all__)


def test_the_properties_are_listed() -> None:
    from typing import get_args

    from tokenprune.testing import Property

    named = re.findall(r"^\| `([a-z ]+)` \|", (DOCS / "write-a-policy.md").read_text(), re.M)
    assert named == list(get_args(Property))
