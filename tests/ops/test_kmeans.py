from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from tokenprune.ops.kmeans import kmeans, lloyd, plus_plus_start, squared_distances


def blobs(clusters: int, each: int, seed: int, spread: float = 0.3) -> Tensor:
    """Points [1, clusters * each, 3] around centres that lie some units apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(clusters, 3, generator=generator)
    return (centres.repeat_interleave(each, 0) + spread * torch.randn(clusters * each, 3, generator=generator))[None]


def slow_inertia(points: Tensor, labels: Tensor) -> float:
    total = 0.0
    for label in set(labels.tolist()):
        own = points[labels == label].double()
        total += float((own - own.mean(0)).square().sum())
    return total


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), clusters=st.integers(1, 8))
def test_lloyd_reaches_scikit_learns_inertia(seed: int, clusters: int) -> None:
    points = torch.randn(1, 120, 3, generator=torch.Generator().manual_seed(seed))
    start = points[:, :clusters]
    reference = KMeans(clusters, init=start[0].numpy(), n_init=1, max_iter=300, tol=0).fit(points[0].numpy())
    labels, centres = lloyd(points, start, iterations=300)
    found = slow_inertia(points[0], labels[0])
    assert found == pytest.approx(reference.inertia_, rel=1e-3)
    for label in set(labels[0].tolist()):
        torch.testing.assert_close(centres[0, label], points[0, labels[0] == label].mean(0), atol=1e-4, rtol=1e-4)


def test_an_iteration_moves_centres_to_the_means() -> None:
    points = torch.tensor([[[0.0], [1.0], [10.0], [14.0]]])
    labels, centres = lloyd(points, torch.tensor([[[1.0], [8.0]]]), iterations=1)
    assert labels.tolist() == [[0, 0, 1, 1]]
    assert centres.tolist() == [[[0.5], [12.0]]]


def test_an_empty_cluster_keeps_its_centre() -> None:
    points = torch.tensor([[[0.0], [1.0]]])
    labels, centres = lloyd(points, torch.tensor([[[0.5], [100.0]]]))
    assert labels.tolist() == [[0, 0]]
    assert centres.tolist() == [[[0.5], [100.0]]]


@pytest.mark.parametrize("clusters", [4, 6, 8])
def test_the_start_is_close_to_scikit_learns_best_of_10(clusters: int) -> None:
    """On at least 9 of 10 sets of clear clusters, within 15 %."""
    ratios = []
    for seed in range(10):
        points = blobs(clusters, 30, seed)
        best = KMeans(clusters, n_init=10, random_state=0).fit(points[0].numpy()).inertia_
        ratios.append(slow_inertia(points[0], kmeans(points, clusters, seed=0)[0]) / best)
    assert sorted(ratios)[8] <= 1.15


@given(seed=st.integers(0, 10_000), clusters=st.integers(1, 10))
def test_the_start_consists_of_distinct_points(seed: int, clusters: int) -> None:
    points = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(seed))
    for image, centres in zip(points, plus_plus_start(points, clusters, seed), strict=True):
        places = [(image == centre).all(1).nonzero().flatten().tolist() for centre in centres]
        assert all(len(place) == 1 for place in places)
        assert len({place[0] for place in places}) == clusters


def test_the_start_prefers_distant_points() -> None:
    """Two tight groups far apart: the second centre is in the other group, whatever the seed."""
    points = torch.randn(1, 25, 2, generator=torch.Generator().manual_seed(0)) / 1000
    points[:, 20:] += 100
    for seed in range(20):
        assert (plus_plus_start(points, 2, seed)[0].mean(-1) > 50).sum() == 1


@given(seed=st.integers(0, 10_000), clusters=st.integers(1, 8))
def test_an_image_is_clustered_as_if_alone(seed: int, clusters: int) -> None:
    points = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(seed))
    together = kmeans(points, clusters, seed=1)
    assert torch.equal(together, torch.cat([kmeans(image[None], clusters, seed=1) for image in points]))


def test_deterministic_under_a_seed() -> None:
    points = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    first, second, other = (kmeans(points, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_squared_distances(batch: int, tokens: int, clusters: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(batch, tokens, channels, generator=generator)
    centres = torch.randn(batch, clusters, channels, generator=generator)
    expected = (points[:, :, None] - centres[:, None]).square().sum(-1)
    torch.testing.assert_close(squared_distances(points, centres), expected, atol=1e-5, rtol=1e-5)
