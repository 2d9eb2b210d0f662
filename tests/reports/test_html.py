"""What objects show of themselves: one line in a terminal, a small table in a notebook; what users wrote is text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Hold, Plan, SequentialPolicy, Taylor, Trace, WarmupSchedule
from tokenprune.reports.html import LONGEST, facts, folded, in_short
from tokenprune.units import memory_in_words

NASTY = "<script>alert('1')</script>&amp;"


class Reader(HTMLParser):
    """Checks that what is opened is closed, and gathers texts and tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@dataclass(frozen=True)
class Named(SequentialPolicy):
    """A policy of a user's own with any text among its settings."""

    text: str = NASTY


@pytest.fixture
def handle(sd3: nn.Module, generate: Callable[..., Tensor]) -> tokenprune.Handle:
    found = tokenprune.apply(sd3, Named(0.3, 3), trace=True)
    generate(sd3, seeds=(0, 1))
    return found


def test_they_are_one_line_that_a_person_can_read(handle: tokenprune.Handle) -> None:
    report = handle.report()
    share = (3 * 24 + 3 * 7) / (6 * 24)
    assert (
        repr(report)
        == f"Report(6 steps, {share:.1%} of the tokens, {report.mac_ratio:.1%} of the MACs, {report.seconds:.2f} s)"
    )
    assert repr(handle.trace) == f"Trace(6 steps, 2 images of 4x6 tokens, {memory_in_words(handle.trace.nbytes)})"
    assert repr(Trace(handle.trace.steps[:0], ())).startswith("Trace(0 steps, 0 images")
    assert repr(Plan(CATPolicy())).startswith("Plan(policy=CATPolicy(alpha=0.3, ")
    for each in (handle, report, handle.trace):
        assert "\n" not in repr(each)
        assert len(repr(each)) < 2 * LONGEST


@dataclass(frozen=True, eq=False)
class Masked(SequentialPolicy):
    """A policy of a user's own with a tensor among its settings."""

    mask: Tensor = field(default_factory=lambda: torch.rand(40, 40))


def test_a_policy_with_a_tensor_stays_in_one_line(sd3: nn.Module) -> None:
    assert "\n" in repr(Masked())
    with tokenprune.apply(sd3, Masked()) as handle:
        assert "\n" not in repr(handle)
        assert repr(handle).startswith("Handle(SD3Transformer2DModel, Masked(alpha=0.3, ")
        assert repr(handle).endswith("0 generations so far)")
    assert " ..." in Plan(Masked())._repr_html_()


def test_notebooks_get_tables(handle: tokenprune.Handle) -> None:
    report, trace = handle.report(), handle.trace
    plan = Plan(Named(), WarmupSchedule(0.5, 2), Taylor(1))
    for shown, expected in (
        (handle, ["SD3Transformer2DModel", "on the model", "Hold()", "generations", "1"]),
        (
            report,
            [f"{report.tokens_ratio:.1%} of the plain model's", "6, of which 3 full", "24 of 24", "7 of 24", "pruned"],
        ),
        (trace, ["4 x 6", "7 of 24", 'trace.save_html("run.html")']),
        (plan, [in_short(plan.policy), in_short(plan.schedule), in_short(plan.reuse)]),
        (Plan(Named()), ["the policy's own", "Hold()"]),
    ):
        read = Reader(shown._repr_html_())
        assert read.texts[0] == type(shown).__name__
        assert set(expected) <= set(read.texts), shown
        assert set(read.tags) <= {"b", "table", "tr", "th", "td", "details", "summary"}
    assert Reader(report._repr_html_()).tags.count("tr") == 5 + 1 + 6
    handle.remove()
    assert "removed" in Reader(handle._repr_html_()).texts


def test_what_users_wrote_is_text(handle: tokenprune.Handle) -> None:
    noted = replace(handle.report(), notes=(NASTY,))
    for shown in (handle, noted, Plan(Named())):
        html = shown._repr_html_()
        assert "<script" not in html
        assert any(NASTY in text for text in Reader(html).texts)
    for html in (facts(NASTY, [(NASTY, NASTY)]), folded(NASTY, [NASTY], [[NASTY]])):
        assert Reader(html).texts == [NASTY] * 3


def test_a_model_whose_map_is_not_found_yet_says_so() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            return hidden_states

    with tokenprune.apply(Own(), SequentialPolicy()) as handle:
        assert {"Own", "before its first call"} <= set(Reader(handle._repr_html_()).texts)


def test_long_values_are_cut_off() -> None:
    assert in_short(Hold()) == "Hold()"
    cut = in_short("x" * 1000)
    assert len(cut) == LONGEST
    assert cut.endswith(" ...")
