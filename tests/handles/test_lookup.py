"""A handle that was lost, as when a notebook's cell is run again: it is found by its model, and taken off."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import AlreadyPrunedError, NoisePolicy, UnknownModelError

POLICY = NoisePolicy(0.3, 3)


def ours(model: nn.Module) -> list[str]:
    return [name for module in model.modules() for name in module.__dict__ if name.startswith("_tokenprune")]


@pytest.fixture(params=["model", "pipeline", "compiled"])
def wrap(request: pytest.FixtureRequest) -> Callable[[nn.Module], Any]:
    return {
        "model": lambda model: model,
        "pipeline": lambda model: SimpleNamespace(transformer=model),
        "compiled": torch.compile,
    }[request.param]


def test_a_lost_handle_is_taken_off(
    model: nn.Module, generate: Callable[..., Tensor], wrap: Callable[[nn.Module], Any]
) -> None:
    plain = generate(model)
    tokenprune.apply(model, POLICY)
    gc.collect()
    assert not torch.equal(generate(model), plain)
    assert tokenprune.remove(wrap(model))
    assert ours(model) == []
    assert torch.equal(generate(model), plain)
    assert not tokenprune.remove(wrap(model))
    tokenprune.apply(model, POLICY).remove()


def test_a_lost_handle_is_found(
    model: nn.Module, generate: Callable[..., Tensor], wrap: Callable[[nn.Module], Any]
) -> None:
    assert tokenprune.handle_of(wrap(model)) is None
    identity = id(tokenprune.apply(model, POLICY))
    gc.collect()
    generate(model)
    found = tokenprune.handle_of(wrap(model))
    assert found is not None
    assert id(found) == identity
    assert [step.full for step in found.report().steps] == [True] * 3 + [False] * 3
    found.remove()
    assert tokenprune.handle_of(wrap(model)) is None


def test_the_error_names_them(model: nn.Module) -> None:
    with tokenprune.apply(model, POLICY):
        for _ in range(2):
            message = r"its remove\(\) first\. .*tokenprune\.remove\(model_or_pipe\).*tokenprune\.handle_of\("
            with pytest.raises(AlreadyPrunedError, match=message):
                tokenprune.apply(model, POLICY)


def test_a_cell_that_is_run_again(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    found = []
    for _ in range(3):
        tokenprune.remove(model)
        handle = tokenprune.apply(model, POLICY)
        found.append(generate(model))
    assert all(torch.equal(found[0], each) for each in found)
    assert handle.report().generations == 1


def test_copies_of_a_pruned_model_have_no_handle(sd3: nn.Module) -> None:
    with tokenprune.apply(sd3, POLICY) as handle:
        assert tokenprune.handle_of(copy.deepcopy(sd3)) is None
        assert tokenprune.handle_of(copy.copy(sd3)) is None
        assert not tokenprune.remove(copy.copy(sd3))
        assert tokenprune.handle_of(sd3) is handle


def test_several_handles_of_a_pipeline(make_model: Callable[[str], nn.Module]) -> None:
    pipe = SimpleNamespace(transformer=make_model("sd3"), transformer_2=make_model("sd3"))
    handles = [tokenprune.apply(model, POLICY) for model in (pipe.transformer, pipe.transformer_2)]
    with pytest.raises(ValueError, match=r"expected one handle, got 2; ask handle_of\(pipe\.transformer\)"):
        tokenprune.handle_of(pipe)
    assert tokenprune.handle_of(pipe.transformer_2) is handles[1]
    assert tokenprune.remove(pipe)
    assert tokenprune.handle_of(pipe) is None


def test_neither_a_model_nor_a_pipeline() -> None:
    for look in (tokenprune.handle_of, tokenprune.remove):
        with pytest.raises(UnknownModelError, match=r"expected a transformer .* got str"):
            look("sd3")
