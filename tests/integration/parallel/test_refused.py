"""Ways to divide a model over devices that cannot be pruned: refused by name, and the model is left as it was."""

from __future__ import annotations

import re
from typing import Any

import programs
import pytest
from diffusers import FluxTransformer2DModel
from diffusers.models._modeling_parallel import ContextParallelOutput
from ranks import Ranks

AT_THE_END = {**FluxTransformer2DModel._cp_plan, "norm_out": ContextParallelOutput(gather_dim=1, expected_dims=3)}
REFUSED: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any], str]] = {
    "ring": ("flux", None, {"ring_degree": 2}, r"ring attention \(ring_degree=2\) .* logarithms .*ulysses_degree=2\)"),
    "anything": (
        "flux",
        None,
        {"ulysses_degree": 2, "ulysses_anything": True},
        "ulysses_anything .* different lengths",
    ),
    "joined twice": ("flux", AT_THE_END, {"ulysses_degree": 2}, "its plan joins the tokens at norm_out, proj_out; exp"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pruned_is_refused(case: str, ranks: Ranks) -> None:
    name, plan, degrees, reason = REFUSED[case]
    for early, left, late, behind in ranks(2, programs.refused, name, plan, degrees):
        assert left == behind == []
        for said in (early, late):
            assert said.startswith("HookConflictError: FluxTransformer2DModel: is divided over several devices (enable")
            assert re.search(reason, said), said
