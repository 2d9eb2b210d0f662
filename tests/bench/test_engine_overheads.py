"""What the engine's own work takes of a pruned step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokenprune.bench.studies.engine_overheads import CONFIGURATIONS, PARTS, shares
from tokenprune.bench.subjects.random_weights import SHAPES, RandomPipeline

SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 16}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_each_part_takes_some_of_a_step(monkeypatch: pytest.MonkeyPatch, configuration: str) -> None:
    shape = SHAPES["pixart-sigma"]
    small = {**shape.config, **SMALL, "cross_attention_dim": 16}
    monkeypatch.setitem(SHAPES, "pixart-sigma", replace(shape, config=small))
    found = shares(RandomPipeline("pixart-sigma"), CONFIGURATIONS[configuration], 128)
    assert set(found) == set(PARTS)
    forecast = "writing and moving keys and values, forecast"
    assert all(
        (share > 0) == (configuration != "CAT" or part != forecast) or "held" in part for part, share in found.items()
    )
    assert sum(found.values()) < 1
