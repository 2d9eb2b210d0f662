"""Forecasts of predictions that follow a polynomial, that follow nothing, and what a state may hold."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import Hold, Reuse, ReuseState, Selection
from tokenprune.reuse.taylor import Taylor

IMAGES, TOKENS, CHANNELS = 2, 12, 64
TIMES = (950.0, 900.0, 840.0, 760.0, 700.0, 610.0, 500.0, 420.0, 300.0, 130.0)
ORDERS = [(order, damped) for order in (1, 2) for damped in (False, True)]
TRACE = 1.02
"""By how much a damped forecast of noise may be worse than holding: the fit sees some hundred numbers, not all."""


def noise(seed: int, images: int = IMAGES) -> Tensor:
    return torch.randn(images, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def polynomial(order: int, seed: int) -> list[Tensor]:
    """Predictions [B, N, C] at TIMES; every number follows its own polynomial, whose slope grows step by step."""
    size = [noise(seed + place) for place in range(order)]
    size = [size[0], *(size[0].sign() * term.abs() for term in size[1:])]
    passed = [(TIMES[0] + 50 - time) / 500 for time in TIMES]
    return [noise(seed + 9) + sum(term * t ** (place + 1) for place, term in enumerate(size)) for t in passed]


def choose(count: int, seed: int, images: int = IMAGES) -> Selection:
    return Selection.top(torch.rand(images, TOKENS, generator=torch.Generator().manual_seed(seed)), count)


def warm(rule: Reuse, predictions: list[Tensor], steps: int) -> ReuseState:
    state = rule.start()
    for prediction, time in zip(predictions[:steps], TIMES, strict=False):
        state.record(prediction, time)
    return state


@pytest.mark.parametrize(("order", "damped"), ORDERS)
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, TOKENS), min_size=6, max_size=6))
def test_exact_on_polynomials_whenever_each_token_was_computed(
    order: int, damped: bool, seed: int, counts: list[int]
) -> None:
    """A count of 0 is a skipped step, all tokens a full one; tokens have their last computations at other times."""
    truth = polynomial(order, seed)
    state = warm(Taylor(order, damped), truth, order + 2)
    for i, count in enumerate(counts, start=order + 2):
        forecast = state.forecast(TIMES[i])
        torch.testing.assert_close(forecast, truth[i], atol=1e-3, rtol=1e-3)
        if count == TOKENS:
            state.record(truth[i], TIMES[i])
        elif count:
            selection = choose(count, seed + i)
            whole = state.complete(selection.gather(truth[i]), selection, TIMES[i])
            torch.testing.assert_close(whole, truth[i], atol=1e-3, rtol=1e-3)
            assert torch.equal(selection.gather(whole), selection.gather(truth[i]))


@pytest.mark.parametrize(("order", "damped"), ORDERS)
def test_a_forecast_beats_holding_on_a_trend(order: int, damped: bool) -> None:
    """The tolerances of the test above would be worthless if holding met them, too."""
    truth = polynomial(order, 0)
    now = order + 2
    held, forecast = (warm(rule, truth, now).forecast(TIMES[now]) for rule in (Hold(), Taylor(order, damped)))
    assert (held - truth[now]).abs().max() > 100 * (forecast - truth[now]).abs().max()


def test_order_1_by_hand() -> None:
    state = Taylor(1, damped=False).start()
    state.record(torch.tensor([[[1.0], [2.0]]]), 10)
    state.record(torch.tensor([[[3.0], [2.5]]]), 8)
    only_first = Selection(torch.tensor([[0]]), 2)
    whole = state.complete(torch.tensor([[[6.0]]]), only_first, 6)
    assert whole.flatten().tolist() == [6, 3]  # 2.5 + (2.5 - 2) / (8 - 10) * (6 - 8)
    assert state.forecast(4).flatten().tolist() == [9, 3.5]  # 6 + (6 - 3) / (6 - 8) * (4 - 6)


def test_order_2_by_hand() -> None:
    state = Taylor(2, damped=False).start()
    for time in (5.0, 4.0, 2.0):
        state.record(torch.tensor([[[time**2 - time]]]), time)
    assert state.forecast(1).item() == pytest.approx(0)
    assert state.forecast(3).item() == pytest.approx(6)


def test_damping_by_hand() -> None:
    state = Taylor(1).start()
    for time, value in ((3.0, 0.0), (2.0, 1.0), (1.0, 1.5)):
        state.record(torch.tensor([[[value]]]), time)
    assert state.forecast(0).item() == pytest.approx(1.5 + 0.5 * 0.5)  # the term was 1, the error 0.5
    state.record(torch.tensor([[[2.0]]]), 0)
    kept = (0.3 * 0.5 + 0.5 * 0.5) / (0.3 * 1 + 0.5 * 0.5)
    assert state.forecast(-1).item() == pytest.approx(2 + kept * 0.5)


def test_damping_of_order_2_by_hand() -> None:
    """The second term answers for what the first one left over."""
    state = Taylor(2).start()
    for time, value in ((0.0, 0.0), (1.0, 1.0), (2.0, 3.0), (3.0, 5.5)):
        state.record(torch.tensor([[[value]]]), time)
    assert state.forecast(4).item() == pytest.approx(5.5 + 1 * 2.5 + 0.5 * 0.5)  # terms were 2 and 1, error 2.5


@pytest.mark.parametrize("order", [1, 2])
def test_a_token_computed_once_is_held_and_one_computed_twice_is_not(order: int) -> None:
    """One full step, then pruned ones: the slope of a token is known from its second computation on."""
    state = Taylor(order, damped=False).start()
    state.record(torch.tensor([[[1.0], [1.0]]]), 10)
    state.complete(torch.tensor([[[2.0]]]), Selection(torch.tensor([[1]]), 2), 9)
    assert state.forecast(8).flatten().tolist() == [1, 3]
    assert state.complete(torch.tensor([[[5.0]]]), Selection(torch.tensor([[0]]), 2), 8).flatten().tolist() == [5, 3]
    assert state.forecast(7).flatten().tolist() == [7, 4]


@pytest.mark.parametrize("damped", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_a_timestep_computed_twice_does_not_hide_the_trend(order: int, damped: bool) -> None:
    """Second-order samplers call the model twice at a timestep; the second prediction replaces the first."""
    truth = polynomial(order, 3)
    once, twice = Taylor(order, damped).start(), Taylor(order, damped).start()
    for i in range(4):
        once.record(truth[i], TIMES[i])
        twice.record(truth[i], TIMES[i])
        twice.record(truth[i], TIMES[i])
    torch.testing.assert_close(twice.forecast(TIMES[4]), once.forecast(TIMES[4]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(twice.forecast(TIMES[4]), truth[4], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("walk", [False, True], ids=["noise", "random walk"])
@pytest.mark.parametrize("order", [1, 2])
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(4, TOKENS), min_size=3, max_size=3))
def test_damped_forecasts_of_jumps_are_hardly_worse_than_holding(
    order: int, walk: bool, seed: int, counts: list[int]
) -> None:
    """Every other step is skipped. Longer gaps would enlarge what the fit mistakes for a trend."""
    jumps = [noise(100 * seed + i) for i in range(len(TIMES))]
    truth = list(itertools.accumulate(jumps)) if walk else jumps
    trend, held = warm(Taylor(order), truth, 4), warm(Hold(), truth, 4)
    errors = {trend: 0.0, held: 0.0}
    for i in range(4, len(TIMES)):
        for state in errors:
            errors[state] += float((state.forecast(TIMES[i]) - truth[i]).square().mean())
            if i % 2:
                selection = choose(counts[(i - 4) // 2], seed + i)
                state.complete(selection.gather(truth[i]), selection, TIMES[i])
    assert errors[trend] <= TRACE**2 * errors[held]


def test_undamped_forecasts_of_jumps_are_worse_than_holding() -> None:
    truth = [noise(i) for i in range(6)]
    free, held = (warm(rule, truth, 5).forecast(TIMES[5]) for rule in (Taylor(1, damped=False), Hold()))
    assert (free - truth[5]).norm() > 1.2 * (held - truth[5]).norm()


@pytest.mark.parametrize("order", [0, 3, 1.5, None])
def test_other_orders_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"^order: expected (1 or 2|a whole number), got {order}$"):
        Taylor(order)


@pytest.mark.parametrize("keys", [-0.1, 1.5, float("nan")])
def test_shares_that_are_none_are_refused(keys: float) -> None:
    with pytest.raises(ValueError, match=f"^keys: expected True, False, or the share of .*, 0 to 1, got {keys}$"):
        Taylor(keys=keys)


def test_keys_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^keys: expected True or False or a number, got 'half'"):
        Taylor(keys="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [Hold(), Taylor(1), Taylor(2), Taylor(2, damped=False)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_results_keep_the_dtype_and_belong_to_the_caller(rule: Reuse, dtype: torch.dtype, steps: int) -> None:
    truth = [prediction.to(dtype) for prediction in polynomial(1, 5)]
    spoilt, kept = rule.start(), warm(rule, truth, steps)
    selection = choose(5, 0)

    def spoil(given: Tensor) -> None:
        given.fill_(float("nan"))

    for prediction, time in zip(truth[:steps], TIMES, strict=False):
        spoilt.record(mine := prediction.clone(), time)
        spoil(mine)
    for i in range(4, 8):
        fresh, mine = selection.gather(truth[i]), truth[i].clone()
        for call, rows in (("forecast", ()), ("complete", (fresh, selection)), ("forecast", ())):
            wanted = getattr(kept, call)(*(row.clone() if row is fresh else row for row in rows), TIMES[i])
            result = getattr(spoilt, call)(*rows, TIMES[i])
            assert result.dtype == dtype
            assert torch.equal(result, wanted)
            spoil(result)
            if rows:
                spoil(fresh)
        kept.record(truth[i], TIMES[i])
        spoilt.record(mine, TIMES[i])
        spoil(mine)


@pytest.mark.parametrize(("order", "damped"), ORDERS)
def test_expecting_changes_nothing(order: int, damped: bool) -> None:
    """Whether the terms are kept from the forecast or made again, also where another time or nothing was expected."""
    truth = polynomial(order, 4)
    asked, other = (warm(Taylor(order, damped), truth, order + 2) for _ in range(2))
    for i in range(order + 2, len(TIMES)):
        assert torch.equal(asked.expect(TIMES[i]), other.forecast(TIMES[i]))
        if i % 4 == 0:
            asked.expect(TIMES[i] + 5)
        if i % 3 == 0:
            asked.record(truth[i], TIMES[i])
            other.record(truth[i], TIMES[i])
        else:
            selection = choose(5, i)
            fresh = selection.gather(truth[i])
            assert torch.equal(asked.complete(fresh, selection, TIMES[i]), other.complete(fresh, selection, TIMES[i]))


@pytest.mark.parametrize("order", [1, 2])
def test_memory_does_not_grow(order: int) -> None:
    truth = polynomial(order, 0)
    state, sizes = Taylor(order).start(), []
    for i, time in enumerate(TIMES):
        selection = choose(5, i)
        state.record(truth[i], time) if i % 3 == 0 else state.complete(selection.gather(truth[i]), selection, time)
        sizes.append(state.nbytes)
    number = IMAGES * TOKENS * 4  # for each token; a full step has one time for all
    one = (CHANNELS + 1) * number
    assert sizes[0] == CHANNELS * number
    assert sizes[1:] == [min(i + 1, order + 1) * one - (i % 3 == 0) * number for i in range(1, len(TIMES))]


@pytest.mark.parametrize("order", [1, 2])
@given(seed=st.integers(0, 10_000), image=st.integers(0, 2))
def test_an_image_does_not_depend_on_its_batch(order: int, seed: int, image: int) -> None:
    """One image follows a trend, one jumps, one does both: their dampings differ."""
    trend = [prediction[:1] for prediction in polynomial(order, seed)]
    jumps = [noise(100 * seed + i, images=1) for i in range(len(TIMES))]
    truth = [torch.cat([a, b, a + b / 9]) for a, b in zip(trend, jumps, strict=True)]
    one = slice(image, image + 1)
    batch, alone = Taylor(order).start(), Taylor(order).start()
    for i, time in enumerate(TIMES):
        selection = choose(4, seed + i, images=3)
        single = Selection(selection.index[one], TOKENS)
        if i > 0:
            torch.testing.assert_close(batch.forecast(time)[one], alone.forecast(time), atol=1e-4, rtol=1e-4)
        if i < 3:
            batch.record(truth[i], time)
            alone.record(truth[i][one], time)
        else:
            batch.complete(selection.gather(truth[i]), selection, time)
            alone.complete(single.gather(truth[i][one]), single, time)
