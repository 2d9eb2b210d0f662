"""Orders and places of tokens against sorting in plain Python."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.ops.ranking import by_cluster, places_in, places_within, ranks, staleness_order

SEEDS = st.integers(0, 1000)


@given(st.integers(1, 3), st.integers(1, 40), SEEDS)
def test_ranks_put_the_highest_first_and_ties_in_grid_order(images: int, tokens: int, seed: int) -> None:
    scores = torch.randint(-3, 4, (images, tokens), generator=torch.Generator().manual_seed(seed)).float()
    for own, found in zip(scores.tolist(), ranks(scores).tolist(), strict=True):
        assert found == [sorted(range(tokens), key=lambda t: -own[t]).index(token) for token in range(tokens)]


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), SEEDS)
def test_places_within_count_the_cluster_before_a_token(images: int, tokens: int, clusters: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(clusters, (images, tokens), generator=generator)
    order = torch.rand(images, tokens, generator=generator).argsort(dim=1)
    found = places_within(labels, order, clusters)
    for own, in_order, places in zip(labels.tolist(), order.tolist(), found.tolist(), strict=True):
        before = [in_order[: in_order.index(token)] for token in range(tokens)]
        assert places == [[own[t] for t in earlier].count(own[token]) for token, earlier in enumerate(before)]


def test_staleness_order_keeps_the_order_of_equals() -> None:
    frequency = torch.tensor([[0.5, 0.0, 1.0, 0.0, 0.5]])
    by_noise = torch.tensor([[4, 3, 2, 1, 0]])
    assert staleness_order(frequency, by_noise).tolist() == [[3, 1, 4, 0, 2]]


@given(st.integers(1, 3), st.integers(1, 40), SEEDS)
def test_places_in_an_order(images: int, tokens: int, seed: int) -> None:
    order = torch.rand(images, tokens, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    expected = [[own.index(token) for token in range(tokens)] for own in order.tolist()]
    assert places_in(order).tolist() == places_in(order, torch.arange(tokens).expand(images, -1)).tolist() == expected


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), SEEDS)
def test_cluster_after_cluster_tokens_keep_their_orders(images: int, tokens: int, clusters: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(clusters, (images, tokens), generator=generator)
    orders = torch.rand(images, 2, tokens, generator=generator).argsort(dim=2)
    for own, given_orders, found in zip(
        labels.tolist(), orders.tolist(), by_cluster(labels, orders).tolist(), strict=True
    ):
        assert found == [sorted(order, key=lambda token: own[token]) for order in given_orders]
