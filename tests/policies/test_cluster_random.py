"""As many random tokens from every cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tokenprune import ClusterRandomPolicy, Memory, Observation

CENTRES = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
GROUPS = torch.tensor([0] * 2 + [1] * 3 + [2] * 6 + [3] * 9)
"""Four groups far apart, of 2, 3, 6 and 9 tokens."""


def prediction(seed: int = 0, images: int = 1) -> torch.Tensor:
    noise = torch.randn(images, 20, 2, generator=torch.Generator().manual_seed(seed))
    return CENTRES[GROUPS] + 0.1 * noise


@pytest.mark.parametrize(
    ("count", "expected"),
    [(4, [1, 1, 1, 1]), (8, [2, 2, 2, 2]), (12, [2, 3, 3, 4]), (18, [2, 3, 6, 7]), (20, [2, 3, 6, 9])],
)
def test_equally_many_until_clusters_are_used_up(
    observe: Callable[..., Observation], count: int, expected: list[int]
) -> None:
    seen = observe(count, (4, 5), prediction=prediction())
    chosen = ClusterRandomPolicy(num_clusters=4).select(seen, {}).mask()[0]
    numbers = [int(chosen[group == GROUPS].sum()) for group in range(4)]
    assert numbers[:2] == expected[:2]
    assert sorted(numbers) == expected


def test_drawn_anew_at_every_step_by_seed(observe: Callable[..., Observation]) -> None:
    def chosen(seed: int, step: int) -> list[int]:
        seen = observe(4, (4, 5), prediction=prediction(), step=step)
        return ClusterRandomPolicy(num_clusters=4, seed=seed).select(seen, {}).index[0].tolist()

    assert chosen(0, 3) == chosen(0, 3)
    assert chosen(0, 3) != chosen(0, 4)
    assert chosen(0, 3) != chosen(1, 3)


def test_clustered_after_full_steps_only(observe: Callable[..., Observation]) -> None:
    policy, memory = ClusterRandomPolicy(num_clusters=4), {}
    policy.select(observe(4, (4, 5), prediction=prediction()), memory)
    first = memory["labels"]
    policy.select(observe(4, (4, 5), prediction=prediction().flip(1), pruned_steps=1), memory)
    assert memory["labels"] is first
    policy.select(observe(4, (4, 5), prediction=prediction().flip(1)), memory)
    assert not torch.equal(memory["labels"], first)


def test_the_draw_is_the_same_in_any_batch(observe: Callable[..., Observation]) -> None:
    policy, together = ClusterRandomPolicy(num_clusters=4), prediction(images=3)
    rows = policy.select(observe(7, (4, 5), prediction=together), {}).index
    for image in range(3):
        memory: Memory = {}
        alone = policy.select(observe(7, (4, 5), prediction=together[image : image + 1]), memory).index
        assert torch.equal(alone[0], rows[image])


@pytest.mark.parametrize("clusters", [0, 1.5])
def test_settings_out_of_range(clusters: float) -> None:
    with pytest.raises(ValueError, match=r"num_clusters: expected a whole number( of at least 1)?, got"):
        ClusterRandomPolicy(num_clusters=clusters)
