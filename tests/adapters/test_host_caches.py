"""Keys and values in host memory change nothing, on a small model of every supported class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import ALL, Tiny
from torch.utils._pytree import tree_leaves, tree_map

import tokenprune
from tokenprune import NoisePolicy, Plan, Taylor

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers warns of its own old names
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # Mochi asks for float32, which the CPU has anyway
]
PLAN = Plan(NoisePolicy(0.3, 3), reuse=Taylor(keys=True))


def draw(tiny: Tiny, **settings: Any) -> tuple[list[Any], Any]:
    """The outputs of five steps, of which the last two are pruned, and the report."""
    model, outputs = tiny.make(), []
    with tokenprune.apply(model, PLAN, **settings) as handle:
        found, inputs = handle._masked.map, tiny.inputs()
        for step in range(5):
            factor = 0.2 + 0.15 * step if found.time_rises else 1 - 0.15 * step
            noised = tree_map(lambda x, s=step: x + 0.2 * s * x.flip(0), inputs[found.latents])
            timestep = (inputs[found.time] * factor).to(inputs[found.time].dtype)
            with torch.no_grad():
                outputs += tree_leaves(model(**{**inputs, found.time: timestep, found.latents: noised}))
        return outputs, handle.report()


@pytest.mark.parametrize("tiny", ALL, ids=[tiny.name for tiny in ALL])
def test_outputs_are_the_same(tiny: Tiny) -> None:
    (expected, without), (outputs, report) = draw(tiny), draw(tiny, cache_device="cpu")
    assert [step.full for step in report.steps] == [True] * 3 + [False] * 2
    assert without.host_cache_bytes == 0 < report.host_cache_bytes
    assert report.host_cache_bytes + report.cache_bytes > without.cache_bytes
    tensors = [pair for pair in zip(expected, outputs, strict=True) if isinstance(pair[0], torch.Tensor)]
    assert tensors
    assert all(torch.equal(*pair) for pair in tensors)
