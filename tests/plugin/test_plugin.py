"""Adapters and policies of other packages, found through their entry points."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

import tokenprune
from tokenprune.errors import UnknownModelError
from tokenprune.policies.registry import find_policy, known_policies
from tokenprune.registry import known_models
from tokenprune.testing import check_adapter, check_policy

SITE = Path(__file__).parent / "site"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package, installed for one test: its folder with metadata on the path, as pip leaves it."""
    monkeypatch.syspath_prepend(SITE)
    import tokenprune_example

    return tokenprune_example


def test_nothing_of_it_is_known_before() -> None:
    assert "drift" not in known_policies()
    with pytest.raises(ValueError, match=r"drift.*tokenprune\.policies"):
        find_policy("drift")


def test_adapter_and_policy_are_found_and_work_together(example: ModuleType) -> None:
    assert "tokenprune_example.Transformer" in known_models()
    assert "drift" in known_policies()
    torch.manual_seed(0)
    model, latents = example.Transformer(), torch.randn(1, 4, 8, 12)
    times = torch.linspace(1, 0.1, 6)
    with torch.no_grad():
        plain = [model(latents, time.expand(1)) for time in times]
        with tokenprune.apply(model, find_policy("drift")(alpha=0.25, warmup_steps=3), discover=False) as handle:
            pruned = [model(latents, time.expand(1)) for time in times]
            assert [step.tokens for step in handle.report().steps] == [24] * 3 + [6] * 3
    assert [torch.equal(a, b) for a, b in zip(plain, pruned, strict=True)] == [True] * 3 + [False] * 3


def test_both_pass_the_kits(example: ModuleType) -> None:
    inputs = {"latents": torch.randn(2, 4, 8, 12), "t": torch.full((2,), 0.5)}
    check_adapter(example.Transformer, inputs)
    check_policy(find_policy("drift"))


def test_without_it_the_model_is_unknown(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = example.Transformer()
    monkeypatch.undo()
    with pytest.raises(UnknownModelError, match="no adapter describes"):
        tokenprune.apply(model, tokenprune.CATPolicy(), discover=False)
