"""The cluster graph against plain Python."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenprune.ops.cluster_graph import ClusterGraph, cluster_adjacency, max_pool, nodes_of
from tokenprune.ops.grid import neighbour_edges, num_tokens, positional_encoding, positions

GRIDS = st.one_of(st.tuples(*[st.integers(1, 6)] * 2), st.tuples(*[st.integers(1, 3)] * 3))


def draw_labels(grid: tuple[int, ...], batch: int, clusters: int, seed: int) -> Tensor:
    return torch.randint(clusters, (batch, math.prod(grid)), generator=torch.Generator().manual_seed(seed))


def draw_features(grid: tuple[int, ...], batch: int, seed: int) -> Tensor:
    return torch.randn(batch, math.prod(grid), 3, generator=torch.Generator().manual_seed(seed))


def slow_max_pool(features: Tensor, labels: Tensor, clusters: int) -> list[list[list[float]]]:
    pooled = []
    for image, row in zip(features.tolist(), labels.tolist(), strict=True):
        members = [[token for token, label in zip(image, row, strict=True) if label == k] for k in range(clusters)]
        pooled.append([[max(column) for column in zip(*own, strict=True)] or [0.0] * 3 for own in members])
    return pooled


def slow_adjacency(labels: Tensor, grid: tuple[int, ...], clusters: int) -> list[list[list[float]]]:
    graph = nx.grid_graph(tuple(reversed(grid)))
    order = {node: place for place, node in enumerate(sorted(graph.nodes, key=lambda n: n if len(grid) > 1 else (n,)))}
    result = []
    for row in labels.tolist():
        touching = [[0.0] * clusters for _ in range(clusters)]
        for one, other in graph.edges:
            a, b = row[order[one]], row[order[other]]
            if a != b:
                touching[a][b] = touching[b][a] = 1.0
        result.append(touching)
    return result


def slow_convolve(pooled: Tensor, adjacency: list[list[list[float]]]) -> list[list[list[float]]]:
    """Sum + mean + max over every cluster and those that touch it."""
    result = []
    for image, touching in zip(pooled.tolist(), adjacency, strict=True):
        near = [[image[j] for j in range(len(image)) if touching[k][j] or j == k] for k in range(len(image))]
        columns = [list(zip(*vectors, strict=True)) for vectors in near]
        result.append([[sum(c) + sum(c) / len(c) + max(c) for c in own] for own in columns])
    return result


@given(GRIDS, st.integers(1, 3), st.integers(1, 8), st.integers(0, 1000))
def test_max_pool(grid: tuple[int, ...], batch: int, clusters: int, seed: int) -> None:
    features, labels = draw_features(grid, batch, seed), draw_labels(grid, batch, clusters, seed)
    assert torch.equal(
        max_pool(features, nodes_of(labels, clusters), clusters),
        torch.tensor(slow_max_pool(features, labels, clusters)),
    )


def test_max_pool_of_negative_values_and_empty_clusters() -> None:
    features = torch.tensor([[[-3.0], [-1.0], [-2.0]]])
    assert max_pool(features, torch.tensor([[0, 0, 2]]), 4).tolist() == [[[-1.0], [0.0], [-2.0], [0.0]]]


@given(GRIDS, st.integers(1, 3), st.integers(1, 8), st.integers(0, 1000))
def test_cluster_adjacency(grid: tuple[int, ...], batch: int, clusters: int, seed: int) -> None:
    labels = draw_labels(grid, batch, clusters, seed)
    expected = slow_adjacency(labels, grid, clusters)
    assert cluster_adjacency(labels, grid, clusters).tolist() == expected


@given(GRIDS, st.integers(1, 3), st.integers(1, 8), st.integers(0, 1000))
def test_convolve(grid: tuple[int, ...], batch: int, clusters: int, seed: int) -> None:
    labels = draw_labels(grid, batch, clusters, seed)
    pooled = torch.randn(batch, clusters, 3, generator=torch.Generator().manual_seed(seed))
    expected = torch.tensor(slow_convolve(pooled, slow_adjacency(labels, grid, clusters)))
    found = ClusterGraph.of(labels, grid, clusters).convolve(pooled)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_convolve_adds_sum_mean_and_maximum() -> None:
    """Clusters 0 and 1 touch, so do 0 and 2; no token is in cluster 3."""
    pooled = torch.tensor([[[1.0], [-10.0], [-100.0], [1000.0]]])
    graph = ClusterGraph.of(torch.tensor([[1, 0, 2]]), (1, 3), 4)
    expected = [-109 - 109 / 3 + 1, -9 - 4.5 + 1, -99 - 49.5 + 1, 3000.0]
    torch.testing.assert_close(graph.convolve(pooled).flatten(), torch.tensor(expected))


def test_convolve_is_what_torch_geometric_makes_of_the_authors_settings() -> None:
    """They ask for [mean, mean, max]; its fused aggregation leaves the first of two equal means undivided."""
    from torch_geometric.nn import MultiAggregation, SimpleConv

    labels = draw_labels((6, 7), 1, 5, 0)
    pooled = max_pool(draw_features((6, 7), 1, 0), nodes_of(labels, 5), 5)
    aggregation = MultiAggregation(aggrs=["mean", "mean", "max"], mode="sum")
    edges = cluster_adjacency(labels, (6, 7), 5)[0].nonzero().t()
    theirs = SimpleConv(aggr=aggregation, combine_root="self_loop")(pooled[0], edges)
    torch.testing.assert_close(ClusterGraph.of(labels, (6, 7), 5).convolve(pooled)[0], theirs)


def test_pooling_is_the_same_with_and_without_torch_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_scatter = pytest.importorskip("torch_scatter", reason="torch_scatter is not installed")
    import torch_geometric.typing

    features, labels = draw_features((6, 7), 2, 0), draw_labels((6, 7), 2, 5, 0)
    graph = ClusterGraph.of(labels, (6, 7), 5)
    results = []
    for installed in (True, False):
        monkeypatch.setattr(torch_geometric.typing, "WITH_TORCH_SCATTER", installed)
        pooled = max_pool(features, nodes_of(labels, 5), 5)
        results.append((pooled, graph.convolve(pooled)))
    direct = torch.stack(
        [torch_scatter.scatter(f, one, 0, dim_size=5, reduce="max") for f, one in zip(features, labels, strict=True)]
    )
    assert torch.equal(results[0][0], direct)
    assert torch.equal(results[1][0], direct)
    torch.testing.assert_close(results[0][1], results[1][1])


@given(GRIDS)
def test_neighbour_edges(grid: tuple[int, ...]) -> None:
    places = list(itertools.product(*map(range, grid)))
    expected = {
        (a, b)
        for (a, one), (b, other) in itertools.permutations(enumerate(places), 2)
        if sum(abs(i - j) for i, j in zip(one, other, strict=True)) == 1
    }
    edges = neighbour_edges(grid, torch.device("cpu")).t().tolist()
    assert len(edges) == len(expected)
    assert {tuple(edge) for edge in edges} == expected


@given(GRIDS, st.integers(1, 9))
def test_positions_and_their_encoding(grid: tuple[int, ...], channels: int) -> None:
    places = list(itertools.product(*map(range, grid)))
    assert num_tokens(grid) == len(places)
    fractions = torch.tensor([[i / extent for i, extent in zip(place, grid, strict=True)] for place in places])
    assert torch.equal(positions(grid, torch.device("cpu")), fractions)
    share = math.ceil(channels / len(grid))
    encoding = positional_encoding(grid, channels, torch.device("cpu"))
    assert torch.equal(encoding, fractions[:, [channel // share for channel in range(channels)]])
