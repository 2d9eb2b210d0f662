"""What policies and schedules see of predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tokenprune.engine.policy_view import PolicyView
from tokenprune.ops.guidance import PARTS, Guidance
from tokenprune.registry import find_adapter


@pytest.mark.parametrize("guidance", PARTS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_sizes_are_root_mean_squares_of_the_norms(
    sd3: nn.Module, guidance: Guidance, shared: bool, scale: float | None
) -> None:
    module_map: Any = replace(find_adapter(sd3)(sd3), shared=shared)
    view = PolicyView(module_map, guidance, scale, images=2, grid=(3, 4))
    drawn = torch.randn(2, 2 * PARTS[guidance], 12, 16, generator=torch.Generator().manual_seed(0))
    norms = torch.stack([view.forecast_error(each, guidance) for each in drawn])
    assert norms.shape == (2, view.images, 12)
    torch.testing.assert_close(view.sizes(drawn.unbind(), guidance), norms.square().mean((1, 2)).sqrt())
    halves = view.sizes(drawn.bfloat16().unbind(), guidance)
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, norms.square().mean((1, 2)).sqrt(), rtol=0.02, atol=0)
