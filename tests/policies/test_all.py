"""What every policy owes: exactly n unique tokens, whatever it sees; an image's choice is its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenprune import (
    CATPolicy,
    Memory,
    NoisePolicy,
    NoiseStalenessPolicy,
    Observation,
    RandomPolicy,
    Selection,
    SelectionPolicy,
    SequentialPolicy,
)

NOISES = ("normal", "zero", "constant", "ties", "nan", "some nan", "infinite", "some infinite", "huge")


@dataclass(frozen=True)
class Case:
    """A run of pruned steps: `images` predictions on `grid`, `count` tokens each, noise of one sort."""

    grid: tuple[int, ...]
    images: int
    channels: int
    count: int
    noise: str
    seed: int
    steps: int = 4

    def prediction(self, step: int) -> Tensor:
        shape = (self.images, math.prod(self.grid), self.channels)
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + step))
        some = torch.where(normal > 0.5, 1.0, 0.0)
        return {
            "normal": normal,
            "zero": torch.zeros(shape),
            "constant": torch.full(shape, 3.0),
            "ties": normal.round(),
            "nan": torch.full(shape, math.nan),
            "some nan": normal.where(some == 0, math.nan),
            "infinite": torch.full(shape, math.inf),
            "some infinite": normal.where(some == 0, math.inf),
            "huge": normal * 1e38,
        }[self.noise]

    def observation(self, step: int, previous: Selection | None) -> Observation:
        reference = torch.zeros(self.images, math.prod(self.grid), self.channels)
        latest = self.prediction(step)
        return Observation(latest, reference, self.count, self.grid, 3 + step, step, 900.0 - step, previous)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    grid = draw(st.one_of(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 4)] * 3)))
    return Case(
        grid=grid,
        images=draw(st.integers(1, 3)),
        channels=draw(st.sampled_from([1, 2, 3, 16])),
        count=draw(st.integers(1, math.prod(grid))),
        noise=draw(st.sampled_from(NOISES)),
        seed=draw(st.integers(0, 1000)),
    )


def run(policy: SelectionPolicy, case: Case) -> list[Selection]:
    memory: Memory = {}
    made: list[Selection] = []
    for step in range(case.steps):
        made.append(policy.select(case.observation(step, made[-1] if made else None), memory))
        assert all(len(tensor) == case.images for tensor in memory.values())
    return made


@settings(max_examples=40)
@given(case=cases())
@example(Case((1, 11), 2, 16, 4, "normal", 0))
@example(Case((3, 5), 1, 16, 7, "ties", 0))
@example(Case((7, 9), 2, 16, 19, "nan", 0))
@example(Case((1, 1), 1, 4, 1, "normal", 0))
@example(Case((2, 3), 1, 4, 6, "zero", 0))
def test_exactly_n_sorted_unique_tokens(policy: SelectionPolicy, case: Case) -> None:
    tokens = math.prod(case.grid)
    for selection in run(policy, case):
        assert selection.index.dtype == torch.int64
        assert selection.num_tokens == tokens
        rows = selection.index.tolist()
        assert [len(row) for row in rows] == [case.count] * case.images
        assert all(row == sorted(set(row)) and row[0] >= 0 and row[-1] < tokens for row in rows)


@settings(max_examples=15)
@given(case=cases())
def test_the_same_again_and_inputs_are_left_alone(policy: SelectionPolicy, case: Case) -> None:
    first, second = run(policy, case), run(policy, case)
    assert all(torch.equal(a.index, b.index) for a, b in zip(first, second, strict=True))
    seen = case.observation(0, None)
    policy.select(seen, {})
    assert torch.equal(seen.prediction.nan_to_num(), case.prediction(0).nan_to_num())
    assert not seen.reference.any()


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), grid=st.sampled_from([(1, 9), (4, 5), (6, 6)]), share=st.floats(0.1, 0.9))
def test_an_image_selects_as_if_alone(policy: SelectionPolicy, seed: int, grid: tuple[int, int], share: float) -> None:
    tokens = math.prod(grid)
    case = Case(grid, 3, 4, max(1, int(share * tokens)), "normal", seed)
    together = run(policy, case)
    for image in range(3):
        memory: Memory = {}
        previous = None
        for step, expected in enumerate(together):
            seen = case.observation(step, previous)
            one = slice(image, image + 1)
            seen = replace(seen, prediction=seen.prediction[one], reference=seen.reference[one])
            previous = policy.select(seen, memory)
            assert torch.equal(previous.index[0], expected.index[image])


def test_noise_takes_the_largest_relative_noise() -> None:
    reference = torch.tensor([[[5.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 9.0]]])
    moved = torch.tensor([[[0.0, 0.0], [0.6, 0.8], [0.0, 2.0], [-1.0, 0.0]]])
    seen = Observation(reference + moved, reference, 2, (2, 2), 3, 0, 900.0, None)
    assert NoisePolicy().select(seen, {}).index.tolist() == [[1, 2]]


def test_sequential_rotates_through_the_grid() -> None:
    made = run(SequentialPolicy(), Case((2, 5), 2, 1, 4, "normal", 0))
    rows = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 8, 9], [2, 3, 4, 5]]
    assert [selection.index.tolist() for selection in made] == [[row, row] for row in rows]


def test_random_depends_on_its_seed_and_the_step_alone() -> None:
    case, other = Case((6, 6), 2, 1, 9, "normal", 0), Case((6, 6), 2, 1, 9, "zero", 5)
    made = run(RandomPolicy(seed=1), case)
    assert all(torch.equal(a.index, b.index) for a, b in zip(made, run(RandomPolicy(seed=1), other), strict=True))
    assert torch.equal(made[0].index[0], made[0].index[1])
    assert not torch.equal(made[0].index, made[1].index)
    assert not torch.equal(made[0].index, run(RandomPolicy(seed=2), case)[0].index)


def test_noise_staleness_with_exact_values() -> None:
    """Noise falls along the grid; n = 4, a quarter by noise and the rest by lowest frequency, then noise."""
    prediction = torch.arange(10.0, 0, -1).view(1, 10, 1)
    policy, memory, previous, rows = NoiseStalenessPolicy(decay=0.5, exploit_share=0.25), {}, None, []
    for step in range(5):
        seen = Observation(prediction, torch.zeros_like(prediction), 4, (2, 5), step, step, 0.0, previous)
        previous = policy.select(seen, memory)
        rows.append(previous.index.tolist()[0])
    assert rows[0] == [0, 1, 2, 3]
    assert rows[1] == [0, 4, 5, 6]
    assert rows[2] == [0, 7, 8, 9]
    assert rows[3] == [0, 1, 2, 3]
    assert rows[4] == [0, 4, 5, 6]
    assert memory["frequency"].tolist() == [[1.875, *[1.125] * 3, *[0.25] * 3, *[0.5] * 3]]


@pytest.mark.parametrize("policy_type", [CATPolicy, NoiseStalenessPolicy])
@pytest.mark.parametrize(
    ("settings_given", "message"),
    [
        ({"decay": 1.0}, r"decay: expected a number in \[0, 1\), got 1\.0"),
        ({"decay": -0.1}, r"decay: expected a number in \[0, 1\), got -0\.1"),
        ({"exploit_share": 1.5}, r"exploit_share: expected a fraction in \[0, 1\], got 1\.5"),
        ({"exploit_share": math.nan}, r"exploit_share: expected a fraction in \[0, 1\], got nan"),
    ],
)
def test_settings_out_of_range(
    policy_type: type[SelectionPolicy], settings_given: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        policy_type(**settings_given)


@pytest.mark.parametrize(
    ("settings_given", "message"),
    [
        ({"num_clusters": 0}, "num_clusters: expected a whole number of at least 1, got 0"),
        ({"num_clusters": 2.5}, r"num_clusters: expected a whole number, got 2\.5"),
        ({"balance_from": 0}, "balance_from: expected a whole number of at least 1, got 0"),
        ({"quota_weights": (0.5, -1)}, r"quota_weights: expected numbers of at least 0, got \(0\.5, -1\)"),
        ({"quota_weights": ()}, r"quota_weights: expected numbers of at least 0, got \(\)"),
        ({"first_quota": 1.5}, r"first_quota: expected a fraction in \[0, 1\], got 1\.5"),
    ],
)
def test_cat_settings_out_of_range(settings_given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CATPolicy(**settings_given)
