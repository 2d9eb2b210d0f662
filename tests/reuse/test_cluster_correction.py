"""Corrections by cluster: against plain loops, by hand, around every rule, in models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, ClusterCorrection, ClusterRandomPolicy, Hold, ListSchedule, Reuse, Selection, Taylor
from tokenprune.ops.kmeans import kmeans

TOKENS, CHANNELS = 12, 3
POLICY, FRACTIONS = CATPolicy(num_clusters=3), ListSchedule((1, 1, 0.3, 0, 0.3, 1, 0.3))
RULES: dict[str, Reuse] = {"hold": Hold(), "taylor": Taylor(1), "taylor-2": Taylor(2, damped=False)}


def noise(seed: int, images: int) -> Tensor:
    return torch.randn(images, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def choose(count: int, seed: int, images: int) -> Selection:
    return Selection.top(torch.rand(images, TOKENS, generator=torch.Generator().manual_seed(seed)), count)


def slow_correction(
    fresh: Tensor, chosen: list[int], forecast: Tensor, labels: list[int], strength: float
) -> list[list[float]]:
    """One image's prediction [N, C], token by token: fresh rows, or forecasts moved as their cluster was."""
    rows = dict(zip(chosen, fresh.tolist(), strict=True))
    expected = forecast.tolist()
    whole = []
    for token, label in enumerate(labels):
        mates = [mate for mate in chosen if labels[mate] == label]
        moved = [
            sum(rows[mate][channel] - expected[mate][channel] for mate in mates) / max(1, len(mates))
            for channel in range(CHANNELS)
        ]
        corrected = [value + strength * move for value, move in zip(expected[token], moved, strict=True)]
        whole.append(rows.get(token, corrected))
    return whole


@pytest.mark.parametrize("inner", RULES.values(), ids=RULES)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, TOKENS - 1), min_size=1, max_size=4),
    clusters=st.integers(1, 15),
    strength=st.sampled_from([0.0, 0.3, 1.0]),
    images=st.integers(1, 3),
)
def test_the_correction_is_that_of_plain_loops(
    inner: Reuse, seed: int, counts: list[int], clusters: int, strength: float, images: int
) -> None:
    """Steps in a row, with a plain state of the inner rule beside; both see the same computations."""
    state, plain = ClusterCorrection(inner, clusters, strength, damped=False).start(), inner.start()
    for time in (10.0, 9.0, 8.0):
        full = noise(seed + int(time), images)
        for known in (state, plain):
            known.record(full, time)
    labels = kmeans(full, min(clusters, TOKENS), 0).tolist()
    for place, count in enumerate(counts):
        time = 7.0 - place
        forecast = plain.forecast(time)
        assert torch.equal(state.forecast(time), forecast)
        selection = choose(count, seed + place, images)
        fresh = selection.gather(noise(seed + 100 + place, images))
        whole = state.complete(fresh, selection, time)
        plain.complete(fresh, selection, time)
        assert torch.equal(selection.gather(whole), fresh)
        for image in range(images):
            chosen = selection.index[image].tolist()
            expected = slow_correction(fresh[image], chosen, forecast[image], labels[image], strength)
            torch.testing.assert_close(whole[image], torch.tensor(expected), atol=1e-4, rtol=1e-4)


def grouped(*values: float) -> Tensor:
    """One image of four tokens in two clusters, 0 and 1, 2 and 3."""
    return torch.tensor([0.0, 1.0, 50.0, 51.0]).add(torch.tensor(values)).view(1, 4, 1)


def test_by_hand() -> None:
    state = ClusterCorrection(num_clusters=2, strength=0.5).start()
    state.record(grouped(0, 0, 0, 0), 3)
    whole = state.complete(torch.tensor([[[6.0]]]), Selection(torch.tensor([[1]]), 4), 2)
    assert whole.flatten().tolist() == [0 + 0.5 * (6 - 1), 6, 50, 51]  # nothing was computed among the last two
    assert state.forecast(1).flatten().tolist() == [0, 6, 50, 51]
    whole = state.complete(torch.tensor([[[3.0], [41.0]]]), Selection(torch.tensor([[0, 3]]), 4), 1)
    assert whole.flatten().tolist() == [3, 6 + 0.5 * 3, 50 - 0.5 * 10, 41]


def test_memory_by_hand() -> None:
    """A kept correction belongs to the forecast until its token is computed, or all are."""
    state = ClusterCorrection(num_clusters=2, memory=0.5).start()
    state.record(grouped(0, 0, 0, 0), 4)
    whole = state.complete(torch.tensor([[[5.0]]]), Selection(torch.tensor([[1]]), 4), 3)
    assert whole.flatten().tolist() == [4, 5, 50, 51]
    assert state.forecast(2).flatten().tolist() == [2, 5, 50, 51]
    whole = state.complete(torch.tensor([[[7.0]]]), Selection(torch.tensor([[1]]), 4), 2)
    assert whole.flatten().tolist() == [2 + 2, 7, 50, 51]
    whole = state.complete(torch.tensor([[[4.0]]]), Selection(torch.tensor([[0]]), 4), 1)
    assert whole.flatten().tolist() == [4, 7 + (4 - 2), 50, 51]
    state.record(grouped(0, 0, 0, 0), 0)
    assert state.forecast(-1).flatten().tolist() == [0, 1, 50, 51]


def test_clusters_that_drift_together_are_followed() -> None:
    """Ten steps, a token of each cluster computed at each: with a lasting correction the rest is exact."""
    drift = torch.tensor([1.0, 1.0, -2.0, -2.0])
    off = {}
    for rule in (Hold(), ClusterCorrection(num_clusters=2), ClusterCorrection(num_clusters=2, memory=1.0)):
        state = rule.start()
        state.record(grouped(0, 0, 0, 0), 0)
        for step in range(1, 11):
            truth = grouped(*(step * drift).tolist())
            selection = Selection(torch.tensor([[0, 2]]), 4)
            whole = state.complete(selection.gather(truth), selection, -step)
        off[str(rule)] = float((whole - truth).abs().max())
    held, corrected, followed = off.values()
    assert (held, corrected, followed) == (20, 18, 0)


def test_clusters_are_those_of_the_last_full_step() -> None:
    state = ClusterCorrection(num_clusters=2).start()
    state.record(grouped(0, 0, 0, 0), 3)
    state.record(grouped(0, 50, 0, -50), 2)  # now 0 and 3 are near each other
    whole = state.complete(torch.tensor([[[2.0]]]), Selection(torch.tensor([[0]]), 4), 1)
    assert whole.flatten().tolist() == [2, 51, 50, 3]


def slow_evidence(forecast_error: list[list[float]], labels: list[int]) -> tuple[float, float]:
    """Sums over an image's computed tokens [n, C]: own forecast error times the others' mean, and that mean squared."""
    product = square = 0.0
    for token, own in enumerate(forecast_error):
        others = [forecast_error[i] for i in range(len(labels)) if i != token and labels[i] == labels[token]]
        for channel in range(CHANNELS) if others else ():
            mean = sum(other[channel] for other in others) / len(others)
            product, square = product + own[channel] * mean, square + mean**2
    return product, square


@given(seed=st.integers(0, 10_000), count=st.integers(1, TOKENS - 1), images=st.integers(1, 3))
def test_damping_is_that_of_plain_loops(seed: int, count: int, images: int) -> None:
    state, plain = (ClusterCorrection(num_clusters=3, damped=damped).start() for damped in (True, False))
    full = noise(seed, images)
    for known in (state, plain):
        known.record(full, 9)
    labels = kmeans(full, 3, 0)
    evidence = [(0.0, 0.0)] * images
    for step in range(3):
        selection, forecast = choose(count, seed + step, images), plain.forecast(8.0 - step)
        fresh = selection.gather(forecast + 0.3 + noise(seed + 50 + step, images))
        damped, undamped = (known.complete(fresh, selection, 8.0 - step) for known in (state, plain))
        for image in range(images):
            forecast_error = (fresh - selection.gather(forecast))[image]
            new = slow_evidence(forecast_error.tolist(), selection.gather(labels)[image].tolist())
            evidence[image] = tuple(0.8 * old + now for old, now in zip(evidence[image], new, strict=True))
            product, square = evidence[image]
            factor = min(1.0, max(0.0, product / square)) if square else 1.0
            expected = forecast[image] + factor * (undamped - forecast)[image]
            expected = torch.where(selection.mask()[image].unsqueeze(-1), undamped[image], expected)
            torch.testing.assert_close(damped[image], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("shared", "own", "low", "high"), [(1.0, 0.0, 0.99, 1.0), (0.0, 1.0, 0.0, 0.3)])
def test_only_what_clusters_share_is_passed_on(shared: float, own: float, low: float, high: float) -> None:
    """Forecast errors alike in a cluster move its other tokens as far; those of each token's own do not."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    full = 100.0 * labels.view(1, 200, 1) + torch.randn(1, 200, 64, generator=generator)
    common = torch.randn(2, 64, generator=generator)[labels]
    truth = full + shared * common + own * torch.randn(1, 200, 64, generator=generator)
    selection = Selection.top(torch.rand(1, 200, generator=generator), 60)
    state = ClusterCorrection(num_clusters=2).start()
    state.record(full, 1)
    moved = (state.complete(selection.gather(truth), selection, 0) - full)[~selection.mask()]
    means = torch.stack([(truth - full)[selection.mask() & (labels == k)].mean(0) for k in range(2)])
    wanted = means[labels.view(1, 200)[~selection.mask()]]
    factor = float((moved * wanted).sum() / wanted.square().sum())
    assert low <= factor <= high + 1e-5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_token_breaks_no_other(value: float) -> None:
    state = ClusterCorrection(num_clusters=2).start()
    state.record(grouped(0, 0, 0, 0), 2)
    whole = state.complete(torch.tensor([[[value], [52.0]]]), Selection(torch.tensor([[0, 2]]), 4), 1)
    assert whole.flatten().tolist()[1:] == [1, 52, 53]
    assert not whole[0, 0].isfinite()


def test_results_are_the_callers_own() -> None:
    state = ClusterCorrection(num_clusters=2, memory=1.0).start()
    first = grouped(0, 0, 0, 0)
    state.record(first, 3)
    first.zero_()
    for _ in range(2):
        whole = state.complete(torch.tensor([[[5.0]]]), Selection(torch.tensor([[1]]), 4), 2)
        assert whole.flatten().tolist() == [4, 5, 50, 51]
        whole.zero_()
        state.forecast(1).zero_()


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_bytes(memory: float) -> None:
    state, plain = ClusterCorrection(num_clusters=3, memory=memory).start(), Hold().start()
    assert state.nbytes == 0
    prediction = noise(0, 2)
    for known in (state, plain):
        known.record(prediction, 2)
    assert state.nbytes == plain.nbytes + prediction.nbytes
    selection = choose(4, 0, 2)
    state.complete(selection.gather(noise(1, 2)), selection, 1)
    labels, corrections = 2 * TOKENS * 8, prediction.nbytes if memory else 0
    assert state.nbytes == plain.nbytes + labels + corrections


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    state = ClusterCorrection(Taylor(1), num_clusters=3, memory=1.0).start()
    for time in (3.0, 2.0):
        state.record(noise(int(time), 2).to(dtype), time)
    selection = choose(4, 0, 2)
    fresh = selection.gather(noise(1, 2).to(dtype))
    whole = state.complete(fresh, selection, 1.0)
    assert whole.dtype == state.forecast(0.0).dtype == dtype
    assert torch.equal(selection.gather(whole), fresh)


def test_keys_and_values_are_the_inner_rules() -> None:
    assert type(ClusterCorrection().start_keys()) is type(Hold().start_keys())
    forecast = Taylor(1, keys=True)
    assert type(ClusterCorrection(forecast).start_keys()) is type(forecast.start_keys())
    assert type(forecast.start_keys()) is not type(Hold().start_keys())
    half = replace(forecast, keys=0.5)
    assert type(ClusterCorrection(half).start_keys(depth=0.25)) is type(half.start_keys())
    assert type(ClusterCorrection(half).start_keys(depth=0.5)) is type(Hold().start_keys())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_clusters": 0}, "num_clusters: expected a whole number of at least 1, got 0"),
        ({"num_clusters": 1.5}, r"num_clusters: expected a whole number, got 1\.5"),
        ({"strength": 1.1}, r"strength: expected a fraction in \[0, 1\], got 1\.1"),
        ({"memory": math.nan}, r"memory: expected a fraction in \[0, 1\], got nan"),
    ],
)
def test_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterCorrection(**given)


def test_without_strength_the_model_draws_what_the_inner_rule_does(
    sd3: nn.Module, generate: Callable[..., Tensor]
) -> None:
    policy = ClusterRandomPolicy(0.3, 3, num_clusters=4)
    made = []
    for reuse in (Taylor(1), ClusterCorrection(Taylor(1), 4, strength=0.0), ClusterCorrection(Taylor(1), 4)):
        with tokenprune.apply(sd3, policy, reuse=reuse):
            made.append(generate(sd3, seeds=(0, 1), steps=7))
    assert torch.equal(made[0], made[1])
    assert made[2].isfinite().all()
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("guidance", ["batched", "sequential", "none"])
@pytest.mark.parametrize("family", ["sd3", "pixart"])
def test_an_image_is_its_own_in_models(
    family: str, guidance: Any, make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]
) -> None:
    """With skipped steps."""
    model, reuse = make_model(family), ClusterCorrection(num_clusters=3, memory=0.5)
    with tokenprune.apply(model, POLICY, schedule=FRACTIONS, reuse=reuse) as handle:
        together = generate(model, seeds=(0, 1), steps=7, guidance=guidance)
        alone = generate(model, seeds=(1,), steps=7, guidance=guidance)
        assert [step.tokens for step in handle.report().steps] == [24, 24, 7, 0, 7, 24, 7]
    torch.testing.assert_close(together[:, 1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["sd3", "pixart"])
def test_guidance_halves_have_clusters_of_their_own(
    family: str, make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]
) -> None:
    """In one batch as in two; only the damping looks at both."""
    model = make_model(family)
    with tokenprune.apply(model, POLICY, schedule=FRACTIONS, reuse=ClusterCorrection(num_clusters=3, damped=False)):
        batched, apart = (generate(model, seeds=(0, 1), steps=7, guidance=g) for g in ("batched", "sequential"))
    torch.testing.assert_close(batched, apart, atol=1e-4, rtol=1e-4)
