"""Modules that make several attention calls, or none: pruned steps equal an oracle, or the first full one refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import processors
import pytest
import torch
from processors import Once, Oracle
from torch import Tensor, nn

import tokenprune
from tokenprune import AttentionRankPolicy, Memory, Observation, Schedule, Selection, SelectionPolicy, Taylor
from tokenprune.schedule import Step

ATOL, GRID, TOKENS = 1e-5, (4, 5), 20
COUNTS = (20, 6, 13, 20, 2, 7)
SERVED: dict[str, Callable[[], Once]] = {
    "once": Once,
    "queries": lambda: processors.Queries(7),
    "queries of a view": lambda: processors.Views(9),
    "queries of copies": lambda: processors.Copies(8),
    "single queries": lambda: processors.Queries(1),
    "heads": lambda: processors.Heads(2),
    "heads with a rest": lambda: processors.Heads(3),
    "images": processors.Images,
    "parts of the batch": processors.Parts,
    "twice": processors.Twice,
    "twice as long": lambda: processors.Twice(25),
    "twice alike": lambda: processors.Twice(0),
    "twice by queries": processors.TwiceByQueries,
    "twice by queries alike": lambda: processors.TwiceByQueries(0),
    "twice in turn": processors.TwiceInTurn,
    "image prompt": lambda: processors.Prompted(6),
    "image prompt at once": lambda: processors.Prompted(30),
}


class Planned(SelectionPolicy):
    """Selects what it is told: masks [B, h, w], by step."""

    def __init__(self, masks: dict[int, Tensor]) -> None:
        self.masks = masks

    def select(self, seen: Observation, memory: Memory) -> Selection:
        rows = self.masks[seen.step].flatten(1)
        return Selection.from_index(torch.stack([row.nonzero().flatten() for row in rows]), rows.shape[1])


class Counts(Schedule):
    """So many tokens at each step."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts

    def fraction(self, step: Step) -> float:
        raise NotImplementedError

    def count(self, step: Step, num_tokens: int) -> int:
        return self.counts[step.index]


def draw_masks(counts: Sequence[int], images: int) -> dict[int, Tensor]:
    found = {}
    for step, count in enumerate(counts):
        order = torch.rand(images, TOKENS, generator=torch.Generator().manual_seed(step)).argsort(1).argsort(1)
        found[step] = (order < count).view(images, *GRID)
    return found


@pytest.fixture(params=["sd3-plain", "pixart"])
def plain(request: pytest.FixtureRequest, make_model: Callable[[str], nn.Module]) -> nn.Module:
    return make_model(request.param)


@pytest.fixture
def run(
    predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> Callable[..., tuple[list[Tensor], list[Tensor]]]:
    """Pruned and expected predictions of a few steps, other latents at each."""

    def compare(
        model: nn.Module,
        images: int = 3,
        halves: int = 1,
        counts: Sequence[int] = COUNTS,
        before: Callable[[int], None] = lambda _: None,
        **wanted: Any,
    ) -> tuple[list[Tensor], list[Tensor]]:
        masks, given = draw_masks(counts, images), make_condition(tuple(range(halves * images)), 5)
        times = torch.linspace(900, 100, len(counts))
        calls = [
            (
                make_latents(tuple(10 * i + image for image in range(images)), GRID).repeat(halves, 1, 1, 1),
                times[i].expand(halves * images),
                given,
            )
            for i in range(len(counts))
        ]
        oracle, expected, actual = Oracle(model, predict), [], []
        for step, call in enumerate(calls):
            before(step)
            chosen = masks[step].repeat(halves, 1, 1) if counts[step] < TOKENS else None
            expected.append(oracle.step(chosen, *call))
        with tokenprune.apply(model, Planned(masks), schedule=Counts(counts), **wanted), torch.no_grad():
            for step, call in enumerate(calls):
                before(step)
                actual.append(predict(model, *call))
        return actual, expected

    return compare


def apart(found: tuple[list[Tensor], list[Tensor]]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", SERVED)
def test_a_pruned_step_equals_the_oracle(plain: nn.Module, name: str, run: Callable[..., Any]) -> None:
    processors.put(plain, SERVED[name]())
    assert apart(run(plain)) <= ATOL


@pytest.mark.parametrize("name", ["images", "parts of the batch", "twice", "queries of copies"])
def test_batched_guidance(plain: nn.Module, name: str, run: Callable[..., Any]) -> None:
    """Two images, whose selections the halves share; a part of the batch is half of it, or not."""
    processors.put(plain, SERVED[name]())
    assert apart(run(plain, images=2, halves=2)) <= ATOL


@pytest.mark.parametrize("processor", [processors.Identity, processors.Doubled])
@pytest.mark.parametrize("kind", ["sd3-plain", "pixart"])
def test_one_image_in_rows_that_are_not_the_batch(
    kind: str, processor: type, make_model: Callable[[str], nn.Module], run: Callable[..., Any]
) -> None:
    """All rows then have the same tokens selected, so it does not matter which they are."""
    model = make_model(kind)
    processors.put(model, processor(0) if processor is processors.Doubled else processor())
    assert apart(run(model, images=1, halves=2)) <= ATOL


def test_a_mask_that_lets_each_token_see_itself(
    make_model: Callable[[str], nn.Module], run: Callable[..., Any]
) -> None:
    """With a single selected token nothing but the last full step shows what a token has for others."""
    model = make_model("sd3-plain")
    processors.put(model, processors.Perturbed())
    assert apart(run(model, counts=(20, 6, 1, 20, 1, 19))) <= ATOL


def test_forecast_keys(plain: nn.Module, run: Callable[..., Any]) -> None:
    """Calls with parts of the queries move forecasts on once; those of single images have no guidance halves."""
    found = {}
    for name in ("once", "queries", "queries of copies", "images", "parts of the batch"):
        processors.put(plain, SERVED[name]())
        found[name] = torch.stack(run(plain, images=1, halves=2, guidance="uncond-first", reuse=Taylor())[0])
    for name in ("queries", "queries of copies"):
        torch.testing.assert_close(found[name], found["once"], atol=ATOL, rtol=0)
    torch.testing.assert_close(found["images"], found["parts of the batch"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", ["queries", "queries of copies", "images", "parts of the batch", "heads"])
def test_a_policy_that_asks_for_attention(
    plain: nn.Module, name: str, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    """However the calls are cut, the weights are those of all queries, images and heads: selections are the same."""
    policy = AttentionRankPolicy(0.3, 2, iterations=1)
    wanted = {"seeds": (0, 1), "guidance": "none", "grid": GRID, "steps": 4}
    found = []
    for processor in (Once(), SERVED[name]()):
        processors.put(plain, processor)
        with tokenprune.apply(plain, policy) as handle:
            generate(plain, **wanted)
            found.append(handle._masked.generation.attention)
    if name == "heads":  # a root mean square over some heads, then a mean over the calls
        assert torch.corrcoef(torch.stack([one.flatten() for one in found]))[0, 1] > 0.95
    else:
        torch.testing.assert_close(*found)


def test_calls_that_change_at_a_full_step(plain: nn.Module, run: Callable[..., Any]) -> None:
    """What a module does is noted at each full step."""
    processor = processors.Twice()
    processors.put(plain, processor)

    def switch(step: int) -> None:
        processor.on = step >= 3

    assert apart(run(plain, before=switch)) <= ATOL


def test_memory_of_calls_that_are_made_no_more(plain: nn.Module, generate: Callable[..., Tensor]) -> None:
    processor = processors.Twice()
    with tokenprune.apply(plain, tokenprune.NoisePolicy(0.3, 2)) as handle:
        processors.put(plain, Once())
        generate(plain)
        once = handle._masked.generation.nbytes
        processors.put(plain, processor)
        generate(plain)
        assert handle._masked.generation.nbytes > once
        processor.on = False
        generate(plain)
        assert handle._masked.generation.nbytes == once
