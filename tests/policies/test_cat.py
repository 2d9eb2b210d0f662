"""CAT Pruning's selection on examples small enough to tell the answer by reasoning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import CATPolicy, Memory, NoiseStalenessPolicy, Observation, Selection, SelectionPolicy
from tokenprune.policies._balance import update_frequency

GRID = (8, 8)
STRONG = [row * 8 + column for row in range(3) for column in range(3)]
WEAK = [row * 8 + column for row in range(5, 8) for column in range(5, 8)]


def observe(prediction: Tensor, count: int, step: int = 0, previous: Selection | None = None) -> Observation:
    return Observation(prediction, torch.zeros_like(prediction), count, GRID, 8 + step, step, 500.0, previous)


def two_blobs(scale: float = 1.0) -> Tensor:
    """Prediction [1, 64, 2]: a strong blob in channel 0, a weaker one in channel 1, each falling along its list."""
    prediction = torch.zeros(1, 64, 2)
    prediction[0, STRONG, 0] = scale * torch.linspace(11, 10, 9)
    prediction[0, WEAK, 1] = scale * torch.linspace(9, 8, 9)
    return prediction


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_frequency_is_an_exponentially_weighted_count(decay: float) -> None:
    rows = [[0, 1], [0, 2], [1, 2], [0, 3]]
    memory: Memory = {}
    previous, expected = None, [0.0] * 4
    for step, row in enumerate([*rows, rows[0]]):
        seen = Observation(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), 2, (2, 2), step, step, 0.0, previous)
        frequency = update_frequency(seen, memory, decay)
        if previous is not None:
            chosen = previous.index.tolist()[0]
            expected = [decay * value + (token in chosen) for token, value in enumerate(expected)]
        torch.testing.assert_close(frequency, torch.tensor([expected]), rtol=1e-6, atol=0)
        previous = Selection.from_index(torch.tensor([row]), 4)


def test_a_full_step_resets_the_frequency() -> None:
    memory: Memory = {"frequency": torch.ones(1, 4)}
    seen = Observation(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), 2, (2, 2), 9, 0, 0.0, None)
    assert not update_frequency(seen, memory, 0.5).any()


def test_the_first_selection_takes_each_clusters_best() -> None:
    """Three clusters: the blobs and the rest. Pooled and convolved they score 11, 9 and |(11, 9)| / 2 = 7.1."""
    policy = CATPolicy(num_clusters=3, first_quotas=(0.5, 0.5))
    assert policy.select(observe(two_blobs(), 8), {}).index.tolist() == [sorted(STRONG[:4] + WEAK[:4])]


def test_the_first_selection_fills_up_by_noise() -> None:
    policy = CATPolicy(num_clusters=3, first_quotas=(0.25, 0.25))
    assert policy.select(observe(two_blobs(), 8), {}).index.tolist() == [sorted(STRONG[:6] + WEAK[:2])]


@pytest.mark.parametrize(("balance_top", "of_strong"), [(True, [0, 4, 5, 6, 7, 8]), (False, [0, 1, 4, 5, 6, 7])])
def test_a_later_selection_balances_noise_and_staleness(balance_top: bool, of_strong: list[int]) -> None:
    """n = 8, half of it from the clusters, two each: the noisiest and the stalest of a balanced cluster.

    The other four are never selected ones, the noisiest of them first: all in the strong blob.
    """
    policy = CATPolicy(
        num_clusters=3, first_quotas=(0.5, 0.5), quotas=(0.5, 0.5), exploit_share=0.5, balance_top=balance_top
    )
    memory: Memory = {}
    first = policy.select(observe(two_blobs(), 8), memory)
    second = policy.select(observe(two_blobs(), 8, 1, first), memory)
    assert second.index.tolist() == [sorted([STRONG[i] for i in of_strong] + [WEAK[0], WEAK[4]])]


def test_labels_are_made_once() -> None:
    policy, memory = CATPolicy(num_clusters=3), {}
    first = policy.select(observe(two_blobs(), 8), memory)
    labels = memory["labels"].clone()
    policy.select(observe(two_blobs().flip(1), 8, 1, first), memory)
    assert torch.equal(memory["labels"], labels)
    assert len(set(labels[0, STRONG].tolist())) == len(set(labels[0, WEAK].tolist())) == 1
    assert len(set(labels[0].tolist())) == 3


def test_the_convolution_lifts_the_neighbours_of_noise() -> None:
    """Blobs of one direction: convolved, the rest scores (11 + 9) / 2 and overtakes the weak blob's 9.

    Every convolved selection then takes a token of the rest instead of one of the weak blob.
    """
    prediction = two_blobs().sum(-1, keepdim=True)
    shares = {}
    for always in (True, False):
        policy = CATPolicy(
            num_clusters=3, first_quotas=(0.5, 0.5), quotas=(0.5, 0.5), exploit_share=1.0, convolve_always=always
        )
        memory: Memory = {}
        first = policy.select(observe(prediction, 4), memory)
        later = policy.select(observe(prediction, 4, 1, first), memory)
        shares[always] = [len(set(s.index[0].tolist()) & set(WEAK)) for s in (first, later)]
    assert shares == {True: [0, 0], False: [0, 2]}


def test_published_constants() -> None:
    policy = CATPolicy.published(0.4, 5, seed=3)
    assert (policy.alpha, policy.warmup_steps, policy.seed) == (0.4, 5, 3)
    assert (policy.num_clusters, policy.decay, policy.exploit_share, policy.feature_scale) == (20, 0.5, 0.25, 0.05)
    assert policy.first_quotas == (0.1,) * 10
    assert policy.quotas == (0.6, 0.4, 0.2, 0.2, 0.2)
    assert not policy.convolve_always
    assert not policy.balance_top


def test_published_clusters_on_the_prediction_itself() -> None:
    """The prediction shows two blobs, the relative noise none: only the published features can find them."""
    prediction = two_blobs(100.0)
    seen = Observation(prediction, prediction.clone(), 8, GRID, 8, 0, 500.0, None)
    labels = {}
    for name, scale in (("paper", None), ("published", 0.05)):
        memory: Memory = {}
        CATPolicy(num_clusters=3, feature_scale=scale).select(seen, memory)
        labels[name] = [set(memory["labels"][0, blob].tolist()) for blob in (STRONG, WEAK)]
    rest = [token for token in range(64) if token not in STRONG + WEAK]
    assert [len(found) for found in labels["published"]] == [1, 1]
    assert not set(memory["labels"][0, rest].tolist()) & set.union(*labels["published"])
    assert labels["paper"] != labels["published"]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), count=st.integers(2, 40))
@pytest.mark.parametrize("policy", [CATPolicy(), CATPolicy.published(), NoiseStalenessPolicy()], ids=repr)
def test_staleness_reaches_every_token(policy: SelectionPolicy, seed: int, count: int) -> None:
    """After the first selection each one takes n - int(n / 4) tokens of those never selected, while there are any."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 + math.ceil((64 - count) / (count - count // 4))
    memory: Memory = {}
    previous, reached = None, torch.zeros(64, dtype=torch.bool)
    for step in range(bound):
        previous = policy.select(observe(torch.randn(1, 64, 4, generator=generator), count, step, previous), memory)
        reached |= previous.mask()[0]
    assert reached.all()
