"""Timesteps as samplers hand them out: entries of a table, copies, parts of longer tables."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tokenprune.engine.sampler import Sampler
from tokenprune.engine.timestep_reader import TimestepReader

FALLING = torch.linspace(1000, 100, 5)


def test_the_table_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    tolist = Tensor.tolist

    def refused(tensor: Tensor) -> float:
        raise AssertionError("a timestep was read on its own")

    def recorded(tensor: Tensor) -> list[float]:
        reads.append(tuple(tensor.shape))
        return tolist(tensor)

    monkeypatch.setattr(Tensor, "tolist", recorded)
    monkeypatch.setattr(Tensor, "__float__", refused)
    reader = TimestepReader()
    values = [reader.read(time.expand(3)) for time in FALLING]
    assert reads == [(5,)]
    found = [(each.time, each.place, each.remaining, each.new_table) for each in values]
    assert found == [(pytest.approx(1000 - 225 * i), i, 5 - i, i == 0) for i in range(5)]
    assert values[2].coming == pytest.approx((550, 325, 100))


def test_a_table_changed_in_place_is_read_again() -> None:
    reader, table = TimestepReader(), FALLING.clone()
    assert reader.read(table[1]) == (775.0, 1, (775.0, 550.0, 325.0, 100.0), True)
    table.mul_(0.5)
    assert reader.read(table[1]) == (387.5, 1, (387.5, 275.0, 162.5, 50.0), True)
    assert reader.read(table[2]) == (275.0, 2, (275.0, 162.5, 50.0), False)


def test_a_table_at_the_address_of_a_freed_one() -> None:
    """Tables of one size come and go; the allocator may give them the same address."""
    reader = TimestepReader()
    for value in range(50):
        table = torch.tensor([value, -1.0])
        time, place, _, new = reader.read(table[0])
        assert (time, place, new) == (value, 0, True)
        del table


def remaining(table: Tensor, whole: Tensor | None = None) -> list[int | None]:
    reader = TimestepReader()
    return [reader.read(time.expand(2), whole).remaining for time in table]


@pytest.mark.parametrize(
    "table",
    [torch.linspace(1000, 20, 28)[:14], torch.linspace(1000, 20, 28)[::2], torch.linspace(1000, 20, 30)[3:25:3]],
    ids=["head", "strided", "strided part"],
)
def test_a_part_of_a_longer_table_is_as_long_as_it_is_where_the_sampler_is_known(table: Tensor) -> None:
    assert remaining(table, table) == list(range(len(table), 0, -1))
    assert remaining(table[4:], table) == list(range(len(table) - 4, 0, -1))


def test_a_strided_table_is_counted_in_its_strides_from_the_second_step_on() -> None:
    assert remaining(torch.linspace(1000, 20, 28)[::2])[1:] == list(range(13, 0, -1))


def test_another_table_of_the_sampler_does_not_count() -> None:
    assert remaining(FALLING, torch.linspace(1000, 100, 9)) == [5, 4, 3, 2, 1]


def test_a_table_made_in_inference_mode_and_changed_in_place() -> None:
    reader = TimestepReader()
    with torch.inference_mode():
        table = FALLING.clone()
        assert reader.read(table[0]).time == 1000
        table.mul_(0.5)
        assert reader.read(table[1]) == (387.5, 1, (387.5, 275.0, 162.5, 50.0), True)
        assert reader.read(table[2]) == (275.0, 2, (275.0, 162.5, 50.0), False)


def test_a_sampler_that_counts_its_steps() -> None:
    scheduler = SimpleNamespace(timesteps=FALLING, step_index=None, begin_index=None)
    sampler = Sampler(SimpleNamespace(scheduler=scheduler))
    assert sampler.timesteps is FALLING
    assert sampler.remaining is None
    scheduler.begin_index = 1
    assert sampler.remaining == 4
    scheduler.step_index = 4
    assert sampler.remaining == 1
    scheduler.step_index = 5
    assert sampler.remaining is None


@pytest.mark.parametrize("pipeline", [SimpleNamespace(), SimpleNamespace(scheduler=SimpleNamespace(timesteps=[3, 2]))])
def test_a_pipeline_without_a_table(pipeline: SimpleNamespace) -> None:
    assert Sampler(pipeline).timesteps is None
    assert Sampler(pipeline).remaining is None
