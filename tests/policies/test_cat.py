"""CAT Pruning's selection on examples small enough to tell the answer by reasoning."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

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


PLAIN = CATPolicy(num_clusters=3, pool_encoding=False)
"""Three clusters, the blobs and the rest, without the encoding's part in their scores.

Pooled they score 11, 9 and 0. Convolved, the rest, which touches both, scores |(11 + 11 / 3 + 11, 9 + 9 / 3 + 9)| = 33,
the strong blob 11 + 11 / 2 + 11 = 27.5, the weak one 22.5.
"""


def test_the_first_selection_takes_each_clusters_best() -> None:
    policy = replace(PLAIN, first_quota=0.25)
    rest = [token for token in range(64) if token not in STRONG + WEAK]
    chosen = policy.select(observe(two_blobs(), 8), {}).index.tolist()[0]
    assert chosen == sorted([*rest[:2], *STRONG[:4], *WEAK[:2]]), "two of each cluster, then two more by noise"


def test_the_first_selection_is_cut_at_n() -> None:
    policy = replace(PLAIN, first_quota=0.6)
    rest = [token for token in range(64) if token not in STRONG + WEAK]
    assert policy.select(observe(two_blobs(), 8), {}).index.tolist() == [sorted(rest[:4] + STRONG[:4])]


@pytest.mark.parametrize("balance_top", [True, False])
def test_later_selections_balance_noise_and_staleness(balance_top: bool) -> None:
    """n = 20: ten from the clusters, each of which gives the two noisiest and, where it is balanced, the stalest.

    First all of the strong blob, one of the weak one, ten of the rest. At the second selection nothing in the strong
    blob is staler than its noisiest token; at the third its third token is, having been selected just once.
    """
    policy = replace(PLAIN, first_quota=0.5, quota_weights=(1.0,), exploit_share=0.5, convolve_always=False)
    policy = replace(policy, balance_top=balance_top)
    rest = [token for token in range(64) if token not in STRONG + WEAK]
    memory: Memory = {}
    previous, rows = None, []
    for step in range(3):
        previous = policy.select(observe(two_blobs(), 20, step, previous), memory)
        rows.append(previous.index.tolist()[0])
    assert rows[0] == sorted([*rest[:10], *STRONG, WEAK[0]])
    assert rows[1] == sorted([*STRONG[:2], *WEAK, *rest[:2], *rest[10:17]])
    assert rows[2] == sorted([*STRONG[: 2 + balance_top], *WEAK[:2], *rest[:2], *rest[17 : 31 - balance_top]])


def test_labels_and_the_graph_are_made_once() -> None:
    policy, memory = CATPolicy(num_clusters=3), {}
    first = policy.select(observe(two_blobs(), 8), memory)
    labels = memory["labels"].clone()
    kept = {name: memory[name] for name in ("labels", "edges", "weights")}
    policy.select(observe(two_blobs().flip(1), 8, 1, first), memory)
    assert all(memory[name] is tensor for name, tensor in kept.items())
    assert torch.equal(memory["labels"], labels)
    assert len(set(labels[0, STRONG].tolist())) == len(set(labels[0, WEAK].tolist())) == 1
    assert len(set(labels[0].tolist())) == 3


TOP_ONLY = replace(PLAIN, first_quota=1.0, quota_weights=(5.0, 0.0), exploit_share=1.0)


def test_the_convolution_lifts_the_neighbours_of_noise() -> None:
    """Convolved, the rest is the strongest cluster, without it the weakest; the strongest gives all that it has."""
    shares = {}
    for always in (True, False):
        policy = replace(TOP_ONLY, convolve_always=always)
        memory: Memory = {}
        first = policy.select(observe(two_blobs(), 10), memory)
        later = policy.select(observe(two_blobs(), 10, 1, first), memory)
        shares[always] = [len(set(s.index[0].tolist()) - {*STRONG, *WEAK}) for s in (first, later)]
    assert shares == {True: [10, 10], False: [10, 0]}


def test_the_encoding_is_pooled_with_the_noise() -> None:
    """Without any noise the cluster in the last corner scores highest; RN alone tells no cluster from another."""
    given = {}
    for pool_encoding in (True, False):
        memory: Memory = {}
        policy = replace(TOP_ONLY, num_clusters=4, seed=1, pool_encoding=pool_encoding, convolve_always=False)
        first = policy.select(observe(torch.zeros(1, 64, 2), 10), memory)
        later = policy.select(observe(torch.zeros(1, 64, 2), 10, 1, first), memory)
        given[pool_encoding] = set(memory["labels"][0, later.index[0]].tolist())
    last = int(memory["labels"][0, 63])
    assert given == {True: {last}, False: {0}}
    assert last != 0


def test_published_settings() -> None:
    policy = CATPolicy.published(0.4, 5, seed=3)
    assert policy == CATPolicy(
        alpha=0.4,
        warmup_steps=5,
        seed=3,
        feature_scale=0.05,
        pool_encoding=False,
        convolve_always=False,
        balance_top=False,
    )
    assert CATPolicy.published(compiled=True) == replace(CATPolicy.published(), balance_top=True, balance_from=2)


def test_making_a_policy_does_not_import_torch_geometric() -> None:
    code = "import sys, tokenprune; tokenprune.CATPolicy(); assert 'torch_geometric' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


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
