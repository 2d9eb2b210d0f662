"""The policies at work: an image comes out the same in any batch, and again in a later generation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    AttentionRankPolicy,
    ClusterRandomPolicy,
    ErrorControlledPolicy,
    MixturePolicy,
    NoisePolicy,
    RegionAdaptivePolicy,
    RegionPolicy,
    SelectionPolicy,
    TocaPolicy,
)

MASK = torch.arange(24).view(4, 6) % 7 == 0
POLICIES = {
    "error-controlled": ErrorControlledPolicy(0.3, 2),
    "ras": RegionAdaptivePolicy(0.3, 2),
    "cluster-random": ClusterRandomPolicy(0.3, 2, num_clusters=3),
    "region": RegionPolicy(ErrorControlledPolicy(0.3, 2), MASK),
    "at-edm": AttentionRankPolicy(0.3, 2, staleness=0.5),
    "toca": TocaPolicy(0.3, 2),
    "region-toca": RegionPolicy(TocaPolicy(0.3, 2), MASK),
    "mixture-at-edm": MixturePolicy(0.3, 2, parts=((AttentionRankPolicy(), 1), (NoisePolicy(), 1))),
    "mixture": MixturePolicy(0.3, 2, parts=((NoisePolicy(), 1), (RegionAdaptivePolicy(), 1))),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_an_image_is_its_own(sd3: nn.Module, generate: Callable[..., Tensor], policy: SelectionPolicy) -> None:
    with tokenprune.apply(sd3, policy) as handle:
        together = generate(sd3, seeds=(0, 1), steps=5)
        alone = generate(sd3, seeds=(1,), steps=5)
        assert [step.tokens for step in handle.report().steps] == [24] * 2 + [7] * 3
        again = generate(sd3, seeds=(0, 1), steps=5)
    assert torch.equal(together, again)
    assert torch.allclose(together[:, 1:], alone, atol=1e-4)
