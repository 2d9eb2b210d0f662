"""CAT Pruning's selection of one image, rule by rule in plain Python, as docs/cat.md lists them: slow, to compare with.

A cluster is a list of its tokens in grid order; empty ones do not exist here. `order` holds the tokens' places among
those of equal frequency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Vectors = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Rules:
    """What differs between the paper and the two versions of its authors' code."""

    pool_encoding: bool
    convolve_always: bool
    balance_top: bool
    balance_from: int


PAPER = Rules(pool_encoding=True, convolve_always=True, balance_top=True, balance_from=1)
PUBLISHED = Rules(pool_encoding=False, convolve_always=False, balance_top=False, balance_from=1)
COMPILED = Rules(pool_encoding=False, convolve_always=False, balance_top=True, balance_from=2)


def norm(vector: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def columns(rows: Iterable[Sequence[float]]) -> list[tuple[float, ...]]:
    return list(zip(*rows, strict=True))


def encoded(noise: Vectors, grid: tuple[int, int]) -> list[list[float]]:
    """Noise plus i/h in the first half of the channels and j/w in the second."""
    (height, width), half = grid, math.ceil(len(noise[0]) / 2)
    places = [(token // width / height, token % width / width) for token in range(len(noise))]
    return [
        [value + place[channel // half] for channel, value in enumerate(vector)]
        for vector, place in zip(noise, places, strict=True)
    ]


def touching(labels: Sequence[int], grid: tuple[int, int]) -> dict[int, set[int]]:
    """The clusters that touch each cluster on the grid, and that cluster itself."""
    found = {label: {label} for label in labels}
    height, width = grid
    for token, label in enumerate(labels):
        row, column = divmod(token, width)
        below = [token + width] if row + 1 < height else []
        right = [token + 1] if column + 1 < width else []
        for other in (labels[place] for place in below + right):
            found[label].add(other)
            found[other].add(label)
    return found


def ranked_clusters(vectors: Vectors, labels: Sequence[int], grid: tuple[int, int], convolve: bool) -> list[list[int]]:
    """The clusters, strongest first."""
    clusters = {label: [token for token, own in enumerate(labels) if own == label] for label in sorted(set(labels))}
    pooled = {label: [max(column) for column in columns(vectors[t] for t in own)] for label, own in clusters.items()}
    scored = pooled
    if convolve:
        scored = {}
        for label, near in touching(labels, grid).items():
            across = columns(pooled[other] for other in near)
            scored[label] = [sum(column) + sum(column) / len(near) + max(column) for column in across]
    return [clusters[label] for label in sorted(clusters, key=lambda label: -norm(scored[label]))]


def first_selection(ranked: list[list[int]], strength: Sequence[float], count: int) -> list[int]:
    given = [token for own in ranked for token in sorted(own, key=lambda t: -strength[t])[: count // 10]]
    return given[:count]


def later_selection(
    ranked: list[list[int]],
    strength: Sequence[float],
    stalest: Sequence[int],
    count: int,
    balanced: Sequence[bool],
) -> list[int]:
    """From clusters: the first int(0.25 n) of what they give."""
    given: list[int] = []
    for place, own in enumerate(ranked):
        quota = min(int(count // 5 * 0.25), len(own))
        quota = min(quota * (3 - place) if place < 3 else quota, len(own))
        tokens = sorted(own, key=lambda t: -strength[t])[:quota]
        if balanced[place]:
            tokens = sorted({*tokens, *[t for t in stalest if t in own][: int(quota * 0.5)]})
        given += tokens
        if len(given) > count * 0.25:
            break
    return given[: int(count * 0.25)]


def select(
    noise: Vectors,
    labels: Sequence[int],
    grid: tuple[int, int],
    count: int,
    pruned_steps: int,
    frequency: Sequence[float],
    order: Sequence[float],
    rules: Rules,
) -> tuple[set[int], list[int]]:
    """The tokens that the code selects, up to n, and all tokens, those with the lowest frequency first."""
    strength = [norm(vector) for vector in noise]
    vectors = encoded(noise, grid) if rules.pool_encoding else noise
    ranked = ranked_clusters(vectors, labels, grid, rules.convolve_always or pruned_steps == 0)
    stalest = sorted(range(len(noise)), key=lambda t: (frequency[t], order[t]))
    if pruned_steps == 0:
        return set(first_selection(ranked, strength, count)), stalest
    balanced = [pruned_steps >= rules.balance_from and (rules.balance_top or place > 0) for place in range(len(ranked))]
    given = later_selection(ranked, strength, stalest, count, balanced)
    return {*given, *stalest[: int(count * 0.75)]}, stalest


def filled(chosen: set[int], stalest: Sequence[int], count: int) -> list[int]:
    """Exactly n tokens: the missing ones are those with the lowest frequency."""
    missing = [token for token in stalest if token not in chosen][: count - len(chosen)]
    return sorted({*chosen, *missing})
