"""Pruned steps against an oracle: the plain model on all tokens, with stale keys and values put into its attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, DensePolicy, Memory, NoisePolicy, Observation, Schedule, Selection, SelectionPolicy
from tokenprune.schedule import Step

ATOL = 1e-5
GRIDS = [(1, 6), (6, 1), (2, 3), (3, 5), (4, 4), (5, 2)]


class Oracle:
    """Runs a plain model; at every attention over the image it keeps keys and values and puts stale ones back.

    Args:
        model: a model without hooks.
        predict: how to call it.
        every: which attention calls see image keys: 1 all of them, 2 the first of each pair.
    """

    def __init__(self, model: nn.Module, predict: Callable[..., Tensor], every: int) -> None:
        self.model, self.predict, self.every = model, predict, every
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.held: Tensor | None = None

    def step(self, chosen: Tensor | None, latents: Tensor, *rest: Any, **options: Any) -> Tensor:
        """The prediction of one step; `chosen` [B, h, w] marks the tokens to compute, None computes all."""
        with self._attention(None if chosen is None else chosen.flatten(1)), torch.no_grad():
            fresh = self.predict(self.model, latents, *rest, **options)
        if chosen is not None and self.held is not None:
            pixels = chosen.repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1)
            fresh = torch.where(pixels, fresh, self.held)
        self.held = fresh
        return fresh

    @contextmanager
    def _attention(self, chosen: Tensor | None) -> Iterator[None]:
        plain = F.scaled_dot_product_attention
        calls = 0

        def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal calls
            site, calls = calls, calls + 1
            if site % self.every == 0:
                if chosen is not None:
                    text = torch.ones(len(chosen), key.shape[2] - chosen.shape[1], dtype=torch.bool)
                    fresh = torch.cat([chosen, text], dim=1)[:, None, :, None]
                    key, value = (
                        torch.where(fresh, new, old) for new, old in zip((key, value), self.kept[site], strict=True)
                    )
                self.kept[site] = key.clone(), value.clone()
            return plain(query, key, value, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", attention)
            yield
        assert calls


@dataclass(frozen=True)
class Planned(SelectionPolicy):
    """Selects what it is told: masks [B, h, w], one for each pruned step."""

    masks: tuple[Tensor, ...] = ()

    def select(self, seen: Observation, memory: Memory) -> Selection:
        rows = self.masks[len(memory)].flatten(1)
        memory[str(len(memory))] = torch.zeros(len(rows))
        return Selection.from_index(torch.stack([row.nonzero().flatten() for row in rows]), rows.shape[1])


@dataclass(frozen=True)
class Counts(Schedule):
    """So many tokens at each step."""

    counts: tuple[int, ...]

    def fraction(self, step: Step) -> float:
        raise NotImplementedError

    def count(self, step: Step, num_tokens: int) -> int:
        return self.counts[step.index]


def draw_mask(grid: tuple[int, int], images: int, count: int, seed: int) -> Tensor:
    order = torch.rand(images, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed)).argsort(1)
    return (order < count).view(images, *grid)


@pytest.fixture(scope="module")
def compare(
    make_model: Callable[[str], nn.Module],
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Callable[..., Any],
) -> Callable[..., list[float]]:
    """Runs both on the same inputs, new latents at every step; returns the largest difference of each step."""

    def run(
        kind: str,
        grid: tuple[int, int],
        images: int,
        counts: Sequence[int],
        seed: int,
        halves: int = 1,
        options: Sequence[dict[str, Any]] | None = None,
        texts: Sequence[int] | None = None,
        floor: float = 0.0,
    ) -> list[float]:
        tokens = grid[0] * grid[1]
        masks = {i: draw_mask(grid, images, n, seed + i) for i, n in enumerate(counts) if n < tokens}
        texts, options = texts or [0] * len(counts), options or [{}] * len(counts)
        conditions = {t: make_condition(tuple(seed + 50 * t + i for i in range(halves * images)), 5) for t in texts}
        times = torch.linspace(900, 100, len(counts))
        inputs = []
        for i, text in enumerate(texts):
            latents = make_latents(tuple(seed + 10 * i + image for image in range(images)), grid)
            inputs.append((latents.repeat(halves, 1, 1, 1), times[i].expand(halves * images), conditions[text]))
        model = make_model(kind)
        oracle = Oracle(model, predict, every=2 if kind == "pixart" else 1)
        expected = [
            oracle.step(masks[i].repeat(halves, 1, 1) if i in masks else None, *call, **options[i])
            for i, call in enumerate(inputs)
        ]
        policy, schedule = Planned(masks=tuple(masks.values())), Counts(tuple(counts))
        with tokenprune.apply(model, policy, schedule=schedule), torch.no_grad():
            actual = [predict(model, *call, **options[i]) for i, call in enumerate(inputs)]
        plain = [predict(model, *call, **options[i]).detach() for i, call in enumerate(inputs)]
        apart = [float((a - p).abs().max()) for a, p in zip(actual, plain, strict=True)]
        assert all(apart[i] == 0 for i in range(len(counts)) if i not in masks)
        assert all(apart[i] >= floor for i in masks)
        return [float((a - e).abs().max()) for a, e in zip(actual, expected, strict=True)]

    return run


@settings(max_examples=15)
@given(data=st.data())
def test_a_pruned_step_equals_the_oracle(kind: str, compare: Callable[..., list[float]], data: st.DataObject) -> None:
    grid = data.draw(st.sampled_from(GRIDS))
    tokens = grid[0] * grid[1]
    pruned = data.draw(st.lists(st.integers(1, tokens), min_size=2, max_size=5))
    differences = compare(
        kind,
        grid,
        images=data.draw(st.integers(1, 3)),
        counts=[tokens, *pruned],
        seed=data.draw(st.integers(0, 10_000)),
        halves=data.draw(st.sampled_from([1, 2])),
    )
    assert max(differences) <= ATOL


def test_a_pruned_step_differs_from_the_plain_model(kind: str, compare: Callable[..., list[float]]) -> None:
    differences = compare(kind, (4, 4), images=2, counts=[16, 5, 5, 5], seed=3, floor=1000 * ATOL)
    assert max(differences) <= ATOL


def test_the_oracle_sees_a_wrong_selection(kind: str, compare: Callable[..., list[float]]) -> None:
    def by_channel(policy: Planned, seen: Observation, memory: Memory) -> Selection:
        return Selection.top(seen.prediction[..., 0], seen.count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planned, "select", by_channel)
        assert max(compare(kind, (3, 5), images=1, counts=[15, 4, 4], seed=0)) > 100 * ATOL


def test_texts_that_change_between_steps(kind: str, compare: Callable[..., list[float]]) -> None:
    assert max(compare(kind, (3, 4), images=2, counts=[12, 5, 5, 5, 5], seed=1, texts=[0, 0, 1, 1, 0])) <= ATOL


def test_controlnet_residuals_are_gathered(compare: Callable[..., list[float]]) -> None:
    residuals = [[torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(i))] * 3 for i in range(4)]
    differences = compare(
        "sd3",
        (3, 4),
        images=2,
        counts=[12, 5, 3, 4],
        seed=2,
        options=[{"block_controlnet_hidden_states": residual} for residual in residuals],
    )
    assert max(differences) <= ATOL


def test_a_text_changed_in_place_is_noticed(
    pixart: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    grid, times = (3, 4), torch.linspace(900, 100, 3)
    masks = (draw_mask(grid, 1, 5, 0), draw_mask(grid, 1, 5, 1))
    latents = [make_latents((i,), grid) for i in range(3)]

    def text(step: int, given_condition: Any) -> Any:
        given_condition.text.copy_(make_condition((step // 2,), 5).text)
        return given_condition

    oracle, one = Oracle(pixart, predict, every=2), make_condition((0,), 5)
    expected = [
        oracle.step(mask, latents[i], times[i].expand(1), text(i, one)) for i, mask in enumerate((None, *masks))
    ]
    with tokenprune.apply(pixart, Planned(masks=masks), schedule=Counts((12, 5, 5))), torch.no_grad():
        for i in range(3):
            actual = predict(pixart, latents[i], times[i].expand(1), text(i, one))
            torch.testing.assert_close(actual, expected[i], atol=ATOL, rtol=0)


def test_a_second_call_that_skips_a_layer(
    sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    """Skip-layer guidance: from the second step on, one more call with half the batch and a layer left out."""
    grid, table, counts = (3, 4), torch.linspace(900, 100, 4), (12, 5, 4, 5)
    masks = tuple(draw_mask(grid, 1, count, i) for i, count in enumerate(counts[1:]))
    both, cond = make_condition((0, 1), 5), make_condition((1,), 5)
    latents = [make_latents((i,), grid) for i in range(4)]
    whole, short = Oracle(sd3, predict, every=1), Oracle(sd3, predict, every=1)
    expected = []
    for i, mask in enumerate((None, *masks)):
        pair = None if mask is None else mask.repeat(2, 1, 1)
        expected.append(whole.step(pair, latents[i].repeat(2, 1, 1, 1), table[i].expand(2), both))
        if i > 0:
            chosen = mask if i > 1 else None
            expected.append(short.step(chosen, latents[i], table[i].expand(1), cond, skip_layers=[1]))
    actual = []
    with tokenprune.apply(sd3, Planned(masks=masks), schedule=Counts(counts)), torch.no_grad():
        for i in range(4):
            actual.append(predict(sd3, latents[i].repeat(2, 1, 1, 1), table[i].expand(2), both))
            if i > 0:
                actual.append(predict(sd3, latents[i], table[i].expand(1), cond, skip_layers=[1]))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=ATOL, rtol=0)


def test_full_steps_are_the_plain_model_bit_for_bit(kind: str, compare: Callable[..., list[float]]) -> None:
    """`compare` asserts it for every full step, those between pruned ones included."""
    assert max(compare(kind, (3, 5), images=2, counts=[15, 15, 4, 15, 4, 4, 15], seed=5, halves=2)) <= ATOL


def test_the_warmup_of_a_generation_is_the_plain_model(
    sd3: nn.Module, policy: SelectionPolicy, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    plain, pruned = generate(sd3, steps=5), generate_fresh(sd3, policy, steps=5)
    assert torch.equal(plain[:3], pruned[:3])
    assert torch.equal(plain, pruned) == (policy.alpha == 1)


@pytest.mark.parametrize("guidance", ["batched", "sequential", "none"])
def test_alpha_1_is_the_plain_model_at_every_step(
    model: nn.Module, guidance: str, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    wanted = {"seeds": (0, 1), "guidance": guidance, "steps": 3}
    plain = generate(model, **wanted)
    for policy in (CATPolicy(1.0, 1), NoisePolicy(1, 1), DensePolicy()):
        assert torch.equal(generate_fresh(model, policy, **wanted), plain)
