"""What goes with calls of compiled blocks; keys and values in host memory need it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hosted import PLANS, POLICY, Generate, both, same
from torch import Tensor, nn

import tokenprune
from tokenprune import Handle, HookConflictError
from tokenprune.engine.escorts import Escorts

MESSAGE = (
    r"SD3Transformer2DModel: apply\(\.\.\., cache_device=\.\.\.\) expected compiled blocks or none, got a model or "
    r"parts of it in torch\.compile\(\); .* Compile each block by itself with block\.compile\(\), or leave "
    r"cache_device out"
)


@pytest.mark.parametrize(
    ("kind", "plan", "when"), [("sd3", "forecast", "before"), ("pixart", "held", "after the first generation")]
)
def test_compiled_blocks(
    kind: str, plan: str, when: str, make_model: Callable[[str], nn.Module], generate: Generate
) -> None:
    """The same graphs, and the same pictures, as with keys and values on the device."""
    model = make_model(kind)
    graphs: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def compile_blocks() -> None:
        for block in model.transformer_blocks:  # type: ignore[union-attr]
            block.compile(backend=counted, fullgraph=True)

    def draw(handle: Handle) -> list[Tensor]:
        made = [] if when == "before" else [generate(model, seeds=(5,))]
        if when != "before":
            compile_blocks()
        made += [generate(model, seeds=(seed,)) for seed in range(3)]
        handle.reset()
        return [*made, generate(model)]

    counts, made = [], []
    for cache_device in (None, "cpu"):
        graphs.clear()
        torch.compiler.reset()
        if when == "before":
            compile_blocks()
        try:
            with tokenprune.apply(model, PLANS[plan], cache_device=cache_device) as handle:
                made.append(draw(handle))
                codes = [block._compiled_call_impl for block in model.transformer_blocks]  # type: ignore[union-attr]
        finally:
            for block in model.transformer_blocks:  # type: ignore[union-attr]
                block._compiled_call_impl = None
            torch.compiler.reset()
        counts.append(len(graphs))
        assert all("escorted" not in str(code) for code in codes)
    assert counts[0] == counts[1] > 0
    assert same(*made)


def test_compiled_models_are_refused(sd3: nn.Module) -> None:
    compiled = torch.compile(sd3, backend="eager")
    with pytest.raises(HookConflictError, match=MESSAGE):
        tokenprune.apply(compiled, POLICY, cache_device="cpu")
    assert not sd3._forward_hooks
    sd3.compile(backend="eager")
    with pytest.raises(HookConflictError, match=MESSAGE):
        tokenprune.apply(sd3, POLICY, cache_device=torch.device("cpu"))
    assert not sd3._forward_hooks


def test_models_that_are_compiled_later_are_refused(sd3: nn.Module, generate: Generate) -> None:
    plain = generate(sd3)
    with tokenprune.apply(sd3, POLICY, cache_device="cpu"):
        generate(sd3)
        sd3.compile(backend="eager")
        with pytest.raises(HookConflictError, match=MESSAGE):
            generate(sd3)
        sd3._compiled_call_impl = None
    torch.compiler.reset()
    assert torch.equal(generate(sd3), plain)


@pytest.mark.filterwarnings("ignore:Dynamo does not know")
def test_a_wrapper_of_torch_that_comes_later(sd3: nn.Module, generate: Generate) -> None:
    """Nobody sees it; its graphs break at the attention modules."""
    expected, _, _ = both(sd3, lambda _: [generate(sd3)], PLANS["held"])
    torch.compiler.reset()
    with tokenprune.apply(sd3, PLANS["held"], cache_device="cpu"):
        compiled = torch.compile(sd3, backend="eager")
        assert same(expected, [generate(compiled)])
    torch.compiler.reset()


def test_calls_are_gone_with_until_all_is_taken_back() -> None:
    log: list[Any] = []
    module, other, escorts = nn.Identity(), nn.Identity(), Escorts()
    for each in (module, other):
        each._compiled_call_impl = lambda x, more=0: log.append((x, more)) or x + more
        escorts.put(each, partial(log.append, "before"), partial(log.append, "after"))
    assert module(1, more=2) == 3
    assert log == ["before", (1, 2), "after"]
    replaced = other._compiled_call_impl = lambda _: "another's"
    escorts.take_back()
    log.clear()
    assert module(1) == 1
    assert log == [(1, 0)]
    assert other._compiled_call_impl is replaced


def test_nothing_follows_a_call_that_fails() -> None:
    log: list[str] = []

    def fail(_: Any) -> None:
        raise ValueError("no")

    module, escorts = nn.Identity(), Escorts()
    module._compiled_call_impl = fail
    escorts.put(module, partial(log.append, "before"), partial(log.append, "after"))
    with pytest.raises(ValueError, match="no"):
        module(1)
    assert log == ["before"]
    escorts.take_back()
    assert module._compiled_call_impl is fail
