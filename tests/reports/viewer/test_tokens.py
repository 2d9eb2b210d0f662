"""What became of each token, packed and unpacked again."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tokenprune import Trace
from tokenprune.reports.viewer.tokens import OLDEST, Layout, Traced, ages, clusters, images_of, oldest, packed, rows


def unpacked(text: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=dtype).view(shape)


def test_a_trace_is_what_a_page_is_made_of(traced: dict[str, Trace]) -> None:
    assert all(isinstance(trace, Traced) for trace in traced.values())
    assert not isinstance(object(), Traced)


@pytest.mark.parametrize("name", ["CAT", "two"])
def test_ages_are_the_traces(name: str, traced: dict[str, Trace]) -> None:
    trace = traced[name]
    expected = torch.stack([step.staleness for step in trace.steps])
    found = unpacked(ages(trace), torch.uint8, tuple(expected.shape))
    assert torch.equal(found.int(), expected)
    assert torch.equal(found == 0, trace.computed)
    assert (images_of(trace), oldest(trace)) == (expected.shape[1], int(expected.max()))


def test_very_old_tokens_look_as_old_as_a_byte_says(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace((4, 5), steps=OLDEST + 60)
    for step in trace.steps:
        step.__dict__["age"] = step.age + 300
    found = unpacked(ages(trace), torch.uint8, (OLDEST + 60, 1, 20))
    assert torch.equal(found == 0, trace.computed)
    assert set(found.unique().tolist()) == {0, OLDEST}


def test_clusters_are_numbered_by_their_first_token_and_kept_once(traced: dict[str, Trace]) -> None:
    trace = traced["CAT"]
    (key,) = found = clusters(trace)
    assert key == "labels"
    assert found[key]["of_step"] == [None, None, 0, 0, None, 0, 0]
    (labels,) = unpacked(found[key]["maps"], torch.int16, (1, 1, 24))[0]
    original = trace.steps[-1].labels[key][0]
    together = labels.unsqueeze(0) == labels.unsqueeze(1)
    assert torch.equal(together, original.unsqueeze(0) == original.unsqueeze(1))
    assert list(dict.fromkeys(labels.tolist())) == list(range(len(original.unique())))


def test_labels_that_change_are_kept_each(make_trace: Callable[..., Trace]) -> None:
    found = clusters(make_trace((4, 5), images=2, labels=("0.labels", "1.labels")))
    assert list(found) == ["0.labels", "1.labels"]
    for one in found.values():
        assert one["of_step"] == [None, None, 0, 1, 2]
        assert unpacked(one["maps"], torch.int16, (3, 2, 20)).shape == (3, 2, 20)
    assert found["0.labels"]["maps"] != found["1.labels"]["maps"]
    assert clusters(make_trace((4, 5))) == {}


def test_rows_are_the_reports(traced: dict[str, Trace]) -> None:
    trace = traced["CAT"]
    found = list(rows(trace))
    assert [row["kind"] for row in found] == ["full", "full", "pruned", "pruned", "skipped", "pruned", "pruned"]
    assert [row["tokens"] for row in found] == [step.report.tokens for step in trace.steps] == [24, 24, 7, 7, 0, 7, 7]
    for row, step in zip(found, trace.steps, strict=True):
        assert row["of"] == 24
        assert row["time"] == pytest.approx(step.report.time, abs=1e-3)
        assert row["seconds"] == pytest.approx(step.report.seconds, abs=1e-5)


@pytest.mark.parametrize(
    ("grid", "layout"),
    [
        ((4, 6), Layout(1, 4, 6, True)),
        ((3, 4, 6), Layout(3, 4, 6, True)),
        ((1, 4, 6), Layout(1, 4, 6, True)),
        ((1, 50), Layout(1, 8, 7, False)),  # of a discovered model whose tokens fit no grid
        ((50,), Layout(1, 8, 7, False)),
        ((50, 1), Layout(1, 50, 1, True)),
        ((1,), Layout(1, 1, 1, False)),
        ((2, 3, 4, 5), Layout(1, 11, 11, False)),
    ],
)
def test_layouts_have_a_cell_for_each_token(grid: tuple[int, ...], layout: Layout) -> None:
    assert Layout.of(grid) == layout
    assert layout.frames * layout.height * layout.width >= torch.tensor(grid).prod()


def test_packing_is_lossless() -> None:
    values = torch.arange(-5, 300, dtype=torch.int16).view(5, 61)
    assert torch.equal(unpacked(packed(values.T), torch.int16, (61, 5)), values.T)
