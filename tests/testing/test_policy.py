"""The check passes every policy of the package and fails broken ones, each by the property it breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor

import tokenprune
from tokenprune import (
    AttentionRankPolicy,
    CATPolicy,
    ClusterRandomPolicy,
    DensePolicy,
    ErrorControlledPolicy,
    Memory,
    MixturePolicy,
    NoisePolicy,
    NoiseStalenessPolicy,
    Observation,
    RandomPolicy,
    RegionAdaptivePolicy,
    RegionPolicy,
    ScorePolicy,
    Selection,
    SelectionPolicy,
    SequentialPolicy,
    TocaPolicy,
)
from tokenprune.policies.base import Need
from tokenprune.testing import GRIDS, PolicyCheckError, Property, check_policy

PARTS = ((NoiseStalenessPolicy(), 0.3), (ErrorControlledPolicy(), 0.4), (SequentialPolicy(), 0.3))
FACTORIES: dict[str, Callable[[], SelectionPolicy]] = {
    "noise": NoisePolicy,
    "noise-staleness": NoiseStalenessPolicy,
    "sequential": SequentialPolicy,
    "random": RandomPolicy,
    "dense": DensePolicy,
    "error-controlled": lambda: ErrorControlledPolicy(order=1),
    "ras": RegionAdaptivePolicy,
    "ras-norm": lambda: RegionAdaptivePolicy(metric="norm", ascending=True, starvation=1.0),
    "mixture": lambda: MixturePolicy(parts=PARTS),
    "at-edm": AttentionRankPolicy,
    "at-edm-staleness": lambda: AttentionRankPolicy(iterations=1, chunk=5, staleness=0.5),
    "toca": TocaPolicy,
    "toca-3": lambda: TocaPolicy(neighbourhood=3, interval=1.0),
}
CLUSTERING: dict[str, Callable[[], SelectionPolicy]] = {
    "cat": lambda: CATPolicy(num_clusters=3),
    "cat-published": CATPolicy.published,
    "cluster-random": lambda: ClusterRandomPolicy(num_clusters=4),
}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_our_policies(factory: Callable[[], SelectionPolicy]) -> None:
    check_policy(factory)


def test_it_tells_how_far_it_is() -> None:
    told: list[str] = []
    check_policy(NoisePolicy, grids=[(1, 7)], tell=told.append)
    assert re.fullmatch(r"grid 1 x 7, normal noise, 1 tokens: passed \(1 of 7, about \d+ s left\)", told[0])
    assert told[-1].endswith(" (7 of 7)")


@pytest.mark.parametrize("factory", CLUSTERING.values(), ids=CLUSTERING)
def test_our_clustering_policies(factory: Callable[[], SelectionPolicy]) -> None:
    check_policy(factory, steps=4)


@pytest.mark.parametrize("grid", GRIDS)
def test_regions(grid: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    mask, excluded = (torch.rand(grid, generator=generator) < 0.3 for _ in range(2))
    check_policy(lambda: RegionPolicy(MixturePolicy(parts=PARTS), mask, excluded), grids=[grid])
    check_policy(lambda: RegionPolicy(TocaPolicy(), mask), grids=[grid])
    check_policy(lambda: MixturePolicy(parts=((RegionPolicy(NoisePolicy(), mask), 1), *PARTS)), grids=[grid])


def test_no_policy_is_left_out() -> None:
    tested = {type(factory()).__name__ for factory in (*FACTORIES.values(), *CLUSTERING.values())}
    assert tested | {"RegionPolicy"} == set(tokenprune.policies.__all__)


def broken(score: Callable[[Observation, Memory], Tensor]) -> Callable[[], SelectionPolicy]:
    class Broken(ScorePolicy):
        def score(self, seen: Observation, memory: Memory) -> Tensor:
            return score(seen, memory)

    return Broken


def selecting(select: Callable[[Observation], Any]) -> Callable[[], SelectionPolicy]:
    class Broken(SelectionPolicy):
        def select(self, seen: Observation, memory: Memory) -> Selection:
            return select(seen)

    return Broken


def size(seen: Observation) -> Tensor:
    return seen.prediction.nan_to_num().norm(dim=-1)


def all_ones(seen: Observation, count: int) -> Tensor:
    return torch.ones(len(seen.prediction), count, dtype=torch.int64)


def raising(seen: Observation, memory: Memory) -> Tensor:
    return memory["nothing"]


def forgetting(seen: Observation, memory: Memory) -> Tensor:
    memory["scale"] = size(seen).mean()
    return size(seen)


def counting(seen: Observation, memory: Memory) -> Tensor:
    memory["steps"] = seen.step  # type: ignore[assignment]
    return size(seen)


def zeroing(seen: Observation, memory: Memory) -> Tensor:
    seen.prediction.nan_to_num_().mul_(2)
    return size(seen)


def ageing(seen: Observation, memory: Memory) -> Tensor:
    assert seen.age is not None
    return seen.age.add_(1)


def drawing(seen: Observation, memory: Memory) -> Tensor:
    return torch.rand(seen.prediction.shape[:2])


def seeding(seen: Observation, memory: Memory) -> Tensor:
    torch.manual_seed(seen.step)
    return size(seen)


def unseeded(seen: Observation, memory: Memory) -> Tensor:
    generator = torch.Generator()
    generator.seed()
    return torch.rand(1, seen.prediction.shape[1], generator=generator).expand(len(seen.prediction), -1)


def averaging(seen: Observation, memory: Memory) -> Tensor:
    return size(seen) * size(seen).mean(dim=0)


def by_place(seen: Observation, memory: Memory) -> Tensor:
    first = size(seen)
    return torch.cat([first[:1], -first[1:]])


def reading(seen: Observation, memory: Memory) -> Tensor:
    return size(seen) / size(seen).max().item()


def listing(seen: Observation, memory: Memory) -> Tensor:
    return torch.stack([torch.as_tensor(row) for row in size(seen).tolist()])


def copying(seen: Observation, memory: Memory) -> Tensor:
    return size(seen) * torch.tensor(2.0)


def masking(seen: Observation, memory: Memory) -> Tensor:
    scores = size(seen)
    scores[scores < 1] = 0
    return scores * (len(scores[scores > 0]) > 0)


@dataclass(frozen=True)
class Remembering(ScorePolicy):
    calls: list[int] = field(default_factory=list)

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        self.calls.append(seen.step)
        return (torch.arange(seen.prediction.shape[1]) * len(self.calls) % 7).expand(len(seen.prediction), -1)


@dataclass(frozen=True)
class Attentive(ScorePolicy):
    """What a policy makes of queries and keys."""

    needs: ClassVar[frozenset[Need]] = frozenset({"attention"})

    weigh: Callable[[Tensor, Tensor], Tensor] = field(default=lambda query, key: (query * key).sum((1, 3)))

    def weigh_attention(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        return self.weigh(query, key)

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        assert seen.attention is not None
        return seen.attention.nan_to_num()


def weighing(weigh: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], SelectionPolicy]:
    return lambda: Attentive(weigh=weigh)


def by_head(query: Tensor, key: Tensor) -> Tensor:
    return (query * key).sum((2, 3))


def in_double(query: Tensor, key: Tensor) -> Tensor:
    return (query * key).double().sum((1, 3))


def adding(query: Tensor, key: Tensor) -> Tensor:
    return (query * key.add_(1)).sum((1, 3))


def scaling(query: Tensor, key: Tensor) -> Tensor:
    return query.sum((1, 3)) / key.sum().item()


class Flat(ScorePolicy):
    """Knows images only."""

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        height, width = seen.grid
        return size(seen).unflatten(1, (height, width)).flatten(1)


BROKEN: list[tuple[Property, str, Callable[[], SelectionPolicy]]] = [
    ("selects", "select raised KeyError: 'nothing'", broken(raising)),
    ("selects", "on grid (4, 4, 4), normal noise, 1 of 64 tokens: select raised ValueError", Flat),
    ("selection", "expected a Selection, got Tensor", selecting(size)),
    ("selection", "expected indices, dtype and tokens", selecting(lambda s: Selection.top(size(s), s.count % 2 + 1))),
    ("selection", "got ([2, 1], torch.int32, 7)", selecting(lambda s: Selection(all_ones(s, s.count).int(), 7))),
    ("selection", "sorted unique indices in 0..6", selecting(lambda s: Selection(all_ones(s, s.count), 7))),
    ("selection", "0..6, got [7]", selecting(lambda s: Selection(7 * all_ones(s, s.count), 7))),
    ("memory", "'scale': expected a tensor with 2 rows, got []", broken(forgetting)),
    ("memory", "'steps': expected a tensor with 2 rows, got int", broken(counting)),
    ("inputs", "select changed the observation's prediction", broken(zeroing)),
    ("inputs", "select changed the observation's age", broken(ageing)),
    ("random state", "select drew from torch's global generator, or seeded it", broken(drawing)),
    ("random state", "select drew from torch's global generator, or seeded it", broken(seeding)),
    ("determinism", "the same again with a new policy", broken(unseeded)),
    ("isolation", "two more generations that take turns", Remembering),
    ("batch", "image 0 alone", broken(averaging)),
    ("batch", "the images in reverse order", broken(by_place)),
    ("attention", "expected torch.float32 weights [2, 7], got torch.float32 [2, 2]", weighing(by_head)),
    ("attention", "got torch.float64 [2, 7]", weighing(in_double)),
    ("inputs", "weigh_attention changed its queries or keys", weighing(adding)),
    ("selects", "weigh_attention raised NotImplementedError", type("Silent", (NoisePolicy,), {"needs": {"attention"}})),
    ("synchronisation", "_local_scalar_dense.default waits for the device", weighing(scaling)),
    ("synchronisation", "aten._local_scalar_dense.default waits for the device", broken(reading)),
    ("synchronisation", "tolist waits for the device", broken(listing)),
    ("synchronisation", "tensor waits for the device", broken(copying)),
    ("synchronisation", "aten.index", broken(masking)),
]


@pytest.mark.parametrize(("property_", "message", "factory"), BROKEN)
def test_broken_policies(property_: Property, message: str, factory: Callable[[], SelectionPolicy]) -> None:
    with pytest.raises(PolicyCheckError, match=re.escape(message)) as caught:
        check_policy(factory)
    assert caught.value.broken == property_
    assert re.match(rf"\w+ breaks '{property_}' on grid \(", str(caught.value))


def test_policies_with_attention_pass() -> None:
    check_policy(Attentive, steps=4)


def test_every_property_can_fail() -> None:
    assert {case[0] for case in BROKEN} == set(get_args(Property))


def test_the_result_tells_how_often_each_property_held() -> None:
    result = check_policy(NoisePolicy, grids=[(3, 5)])
    told = {finding.name: finding for finding in result.findings}
    assert tuple(told) == get_args(Property)
    assert {name for name, finding in told.items() if finding.outcome == "not checked"} == {"memory", "attention"}
    assert told["attention"].detail == "the policy asks for none"
    assert re.match(r"\d\d+ selections made$", told["selects"].detail)
    assert str(result).startswith("policy NoisePolicy\n  selects")
    assert "what a selection costs" in str(result)
    assert {f.outcome for f in check_policy(TocaPolicy, grids=[(3, 5)]).findings if f.name == "attention"} == {"passed"}


def test_the_error_has_the_result_until_then() -> None:
    class Generous(NoisePolicy):
        def select(self, seen: Observation, memory: Memory) -> Selection:
            return Selection.top(seen.relative_noise.norm(dim=-1), seen.count + (seen.step >= 5))

    with pytest.raises(PolicyCheckError) as caught:
        check_policy(Generous, grids=[(3, 5)])
    result = caught.value.result
    assert result is not None
    told = {finding.name: (finding.outcome, finding.detail) for finding in result.findings}
    assert told["selection"] == ("failed", str(caught.value))
    assert told["selects"] == ("passed", "2 selections made, until then")
    assert told["batch"] == ("not checked", "not reached")
    assert not result.passed
