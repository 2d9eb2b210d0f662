"""Several windows of a picture, or several generations, that take turns on one model in one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, UnsupportedCallError

POLICY = CATPolicy(0.3, 2, num_clusters=5)
TABLE = torch.linspace(1000, 20, 6)
Call = Callable[..., Tensor]


@pytest.fixture
def call(predict: Callable[..., Tensor]) -> Call:
    def call(model: nn.Module, latents: Tensor, time: Tensor, given: Any, times: str) -> Tensor:
        timestep = time.expand(len(latents)) if times == "table" else torch.full((len(latents),), float(time))
        with torch.no_grad():
            return latents - 0.2 * predict(model, latents, timestep, given)

    return call


@pytest.fixture
def windows(make_latents: Callable[..., Tensor], make_condition: Callable[..., Any]) -> dict[str, tuple[Tensor, Any]]:
    return {name: (make_latents((seed,), (4, 6)), make_condition((seed,), 5)) for seed, name in enumerate("abc")}


def in_turns(
    call: Call, model: nn.Module, parts: dict[str, tuple[Tensor, Any]], enter: Callable[[str], Any], times: str
) -> dict[str, Tensor]:
    latents = {name: part for name, (part, _) in parts.items()}
    for time in TABLE:
        for name, (_, given) in parts.items():
            with enter(name):
                latents[name] = call(model, latents[name], time, given, times)
    return latents


@pytest.mark.parametrize("times", ["table", "fresh"])
def test_windows_with_names_are_as_if_alone(model: nn.Module, call: Call, windows: Any, times: str) -> None:
    alone = {}
    for name, part in windows.items():
        with tokenprune.apply(model, POLICY, guidance="none"):
            alone |= in_turns(call, model, {name: part}, lambda _: nullcontext(), times)
    with tokenprune.apply(model, POLICY, guidance="none") as handle:
        for _ in range(2):
            found = in_turns(call, model, windows, handle.window, times)
            assert all(torch.equal(found[name], alone[name]) for name in windows)
            assert [step.full for step in handle.report().steps] == [True] * 2 + [False] * 4
        assert handle.report().generations == 6


def test_memory_of_all_windows_is_counted_and_freed(model: nn.Module, call: Call, windows: Any) -> None:
    with tokenprune.apply(model, POLICY, guidance="none") as handle:
        in_turns(call, model, {"a": windows["a"]}, handle.window, "table")
        one = handle.report().cache_bytes
    with tokenprune.apply(model, POLICY, guidance="none") as handle:
        in_turns(call, model, windows, handle.window, "table")
        assert handle.report().cache_bytes > 2.5 * one
        handle.reset()
        assert len(handle._masked._windows._all) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("times", ["table", "fresh"])
def test_windows_without_names_are_refused(model: nn.Module, call: Call, windows: Any, times: str) -> None:
    with tokenprune.apply(model, POLICY, guidance="none"), pytest.raises(UnsupportedCallError, match=r"handle\.window"):
        in_turns(call, model, windows, lambda _: nullcontext(), times)
    assert not any(name.startswith("_tokenprune") for module in model.modules() for name in module.__dict__)


def test_two_generations_in_turns_are_refused_without_names(
    sd3: nn.Module, call: Call, windows: Any, predict: Callable[..., Tensor]
) -> None:
    """As generators that yield after each step would."""

    def generation(latents: Tensor, given: Any) -> Iterator[None]:
        for time in TABLE:
            latents = call(sd3, latents, time, given, "fresh")
            yield

    with tokenprune.apply(sd3, POLICY, guidance="none") as handle:
        one, other = generation(*windows["a"]), generation(*windows["b"])
        for turn in (one, other, one):
            next(turn)
        with pytest.raises(UnsupportedCallError, match=r"timestep 804: expected the same latents in every call"):
            next(other)
        turns = [generation(*windows["a"]), generation(*windows["b"])]
        for _ in TABLE:
            for name, turn in zip("ab", turns, strict=True):
                with handle.window(name):
                    next(turn)
        assert [step.full for step in handle.report().steps] == [True] * 2 + [False] * 4


def test_a_name_at_the_same_time_is_a_branch_of_the_step(
    sd3: nn.Module, call: Call, windows: Any, predict: Callable[..., Tensor]
) -> None:
    """Names of a pipeline's own (`cache_context`), though their latents differ: they prune, and keep their caches."""

    @contextmanager
    def context(name: str) -> Iterator[None]:
        yield

    sd3.cache_context = context  # type: ignore[assignment]
    with tokenprune.apply(sd3, POLICY, guidance="none") as handle:
        enter: Callable[[str], AbstractContextManager[None]] = sd3.cache_context  # type: ignore[assignment]
        in_turns(call, sd3, windows, enter, "table")
        report = handle.report()
        assert report.generations == 1
        assert [step.full for step in report.steps] == [True] * 2 + [False] * 4
        assert {branch.name for branch in handle._masked.generation.branches} == set(windows)  # type: ignore[union-attr]


@pytest.mark.parametrize("part", ["block", "attention", "model"])
def test_parts_called_by_themselves_after_a_pruned_step(
    model: nn.Module, call: Call, windows: Any, part: str, predict: Callable[..., Tensor]
) -> None:
    """What a pruned call computes is told to its hooks for that call alone."""
    latents, given = windows["a"]
    seen: list[tuple[Any, Any]] = []
    block = model.transformer_blocks[1]
    called = {"block": block, "attention": getattr(block, "attn", None) or block.attn1, "model": model}[part]
    watch = called.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    call(model, latents, TABLE[-1], given, "table")
    watch.remove()
    (args, kwargs), run = seen[-1], called.forward if part == "model" else called
    with torch.no_grad():
        plain = run(*args, **kwargs)
    with tokenprune.apply(model, POLICY, guidance="none") as handle:
        in_turns(call, model, {"": windows["a"]}, handle.window, "table")
        with torch.no_grad():
            again = run(*args, **kwargs)
    first, second = (made if isinstance(made, (tuple, list)) else [made] for made in (plain, again))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True) if isinstance(one, Tensor))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_text_that_is_changed_in_place(
    pixart: nn.Module, mode: Any, windows: Any, predict: Callable[..., Tensor], make_condition: Callable[..., Any]
) -> None:
    """Between two pruned steps: the next one attends to the new text, also where tensors have no version."""
    latents, other = windows["a"][0], make_condition((9,), 5)

    def last(change: bool) -> Tensor:
        with mode(), tokenprune.apply(pixart, POLICY, guidance="none"):
            given = make_condition((0,), 5)
            text = given.text.clone()
            given = type(given)(text, given.pooled, given.mask)
            for step, time in enumerate(TABLE):
                if step == 4 and change:
                    text.copy_(other.text)
                made = predict(pixart, latents, time.expand(1), given)
            return made.clone()

    assert not torch.equal(last(True), last(False))
