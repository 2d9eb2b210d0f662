"""Wrappers of torch in which each rank draws pictures of its own, with weights that are divided or copied."""

from __future__ import annotations

import programs
import pytest
import torch
from ranks import Ranks
from torch.nn.parallel import DistributedDataParallel

WRAPPERS = {"copies": DistributedDataParallel, "fully_shard": programs.by_fully_shard}


STREAMS = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="fully_shard of this torch does not run on CPUs"
)


@pytest.mark.parametrize("wrapper", ["copies", pytest.param("fully_shard", marks=STREAMS)])
def test_each_rank_prunes_as_alone(wrapper: str, ranks: Ranks) -> None:
    found = ranks(2, programs.own_pictures, WRAPPERS[wrapper])
    for alone, wrapped in found:
        assert all(map(torch.equal, alone.outputs, wrapped.outputs))
        assert all(map(torch.equal, alone.computed, wrapped.computed))
        assert alone.keys == wrapped.keys
    (_, first), (_, second) = found
    assert not torch.equal(first.computed[-1], second.computed[-1])
