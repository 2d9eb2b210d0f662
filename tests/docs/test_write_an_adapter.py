"""The code of docs/write-an-adapter.md, on a diffusion transformer in plain PyTorch."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tokenprune.testing import AdapterCheckError

PAGE = Path(__file__).parents[2] / "docs" / "write-an-adapter.md"
EXAMPLE = PAGE.parent / "template" / "tokenprune_mine" / "model.py"


def load_example() -> ModuleType:
    """The model of the template as a plain module, without the package's entry points."""
    spec = importlib.util.spec_from_file_location("example_of_the_page", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PlainTransformer = load_example().MyTransformer


def test_the_pages_adapter_prunes() -> None:
    torch.manual_seed(0)
    model = PlainTransformer()
    times = torch.linspace(1, 0.1, 6)
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        plain = [model(latents, t.expand(1)) for t in times]
    scope: dict[str, Any] = {"model": model}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)[0], scope)
    with scope["handle"] as handle, torch.no_grad():
        pruned = [model(latents, t.expand(1)) for t in times]
        report = handle.report()
    assert [step.tokens for step in report.steps] == [64] * 4 + [19] * 2
    for step in range(4):
        assert torch.equal(plain[step], pruned[step])
    changed = (pruned[4] != pruned[3]).any(1).sum()
    assert int(changed) == 19 * 4


def test_the_page_checks_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # results are as wide as the terminal
    adapter, check = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    inputs = {"latents": torch.randn(2, 4, 8, 12), "t": torch.full((2,), 0.5)}
    scope: dict[str, Any] = {"make_small_model": PlainTransformer, "inputs": inputs}
    exec(adapter.partition("handle =")[0], scope)
    exec(check, scope)
    assert re.findall(r"```text\n(.*?)\n```", PAGE.read_text(), re.S) == [str(scope["result"])]
    exec(
        adapter.partition("handle =")[0].replace(
            '.attn") for i in range(len(model.blocks))', '.attn") for i in range(1)'
        ),
        scope,
    )
    with pytest.raises(AdapterCheckError, match="breaks 'pruned'"):
        exec(check, scope)
