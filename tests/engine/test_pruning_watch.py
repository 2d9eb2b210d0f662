"""What the logger tells: once for each handle, as soon as it is known, and nothing where all is as was asked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    BudgetSchedule,
    CATPolicy,
    DensePolicy,
    LevelSchedule,
    ListSchedule,
    NoisePolicy,
    PlacedSchedule,
    RefreshSchedule,
    Schedule,
    Step,
    WarmupSchedule,
)
from tokenprune.engine import pruning_watch
from tokenprune.units import memory_in_words

TABLE = torch.linspace(1000, 20, 6)
EXPECTED = "what is told in advance"
NOTHING = "nothing will be pruned: the generation that begins has 6 steps, under "


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """All that is logged but the expectation."""
    monkeypatch.setattr("tokenprune.api.told_in_advance", lambda *_: EXPECTED)
    caplog.set_level(logging.INFO, "tokenprune")

    def messages() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "tokenprune"]
        return [message for message in found if message != EXPECTED]

    return messages


def test_fewer_steps_than_warm_up(model: nn.Module, generate: Callable[..., Tensor], told: Any) -> None:
    """At the first call, and not again; another handle tells it anew."""
    for handles in (1, 2):
        with tokenprune.apply(model, CATPolicy()):
            generate(model, stop=1)
            asked = "WarmupSchedule(alpha=0.3, warmup_steps=8, last_full=0), which needs 9 of them to prune any"
            assert told() == [NOTHING + asked] * handles
            generate(model)
            generate(model)
            assert len(told()) == handles


@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_too_few_steps_to_be_forecast(
    budget: float, model: nn.Module, generate: Callable[..., Tensor], told: Any
) -> None:
    """Said once; not where nothing is skipped."""
    schedule = PlacedSchedule(budget)
    with tokenprune.apply(model, DensePolicy(), schedule=schedule):
        for _ in range(2):
            generate(model)
    begin = f"the generation that begins has 6 steps: under {schedule!r}, pictures of fewer than 10 steps change"
    assert [message.startswith(begin) for message in told()] == ([True] if budget < 1 else [])


def test_it_is_a_warning(sd3: nn.Module, generate: Callable[..., Tensor], caplog: pytest.LogCaptureFixture) -> None:
    with tokenprune.apply(sd3, CATPolicy()):
        generate(sd3, stop=1)
    assert [(record.name, record.levelno) for record in caplog.records] == [("tokenprune", logging.WARNING)]
    assert logging.getLogger("tokenprune").handlers == []


class Whole(Schedule):
    """All tokens at each step; it says nothing of what is to come."""

    def fraction(self, step: Step) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("schedule", "needed"),
    [
        (WarmupSchedule(0.3, 3, last_full=3), ", which needs 7 of them to prune any"),
        (RefreshSchedule(2, 0.5, 6), ", which needs 7 of them to prune any"),
        (ListSchedule((1, 1, 1, 1, 1, 1, 0.5)), ", which needs 7 of them to prune any"),
        (LevelSchedule(((1, 1), (0, 0.1)), 6), ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_schedules(
    schedule: Any, needed: str, sd3: nn.Module, generate: Callable[..., Tensor], told: Any
) -> None:
    with tokenprune.apply(sd3, NoisePolicy(), schedule=schedule):
        generate(sd3, stop=1)
    assert told() == [f"{NOTHING}{schedule!r}{needed}"]


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupSchedule(0.3, 5),
        WarmupSchedule(1.0, 8),
        RefreshSchedule(1),
        BudgetSchedule(0.9),
        BudgetSchedule(1.0),
        ListSchedule((1.0, 0.5)),
        ListSchedule((1.0,)),
        LevelSchedule(((1, 1), (0, 0.1)), 2),
        DensePolicy().schedule(),
    ],
    ids=repr,
)
def test_nothing_to_tell(schedule: Schedule, sd3: nn.Module, generate: Callable[..., Tensor], told: Any) -> None:
    """It prunes, or was never meant to."""
    with tokenprune.apply(sd3, NoisePolicy(), schedule=schedule):
        for _ in range(3):
            generate(sd3)
            generate(sd3, times="fresh")
    assert told() == []


def test_steps_that_are_not_known_ahead(sd3: nn.Module, generate: Callable[..., Tensor], told: Any) -> None:
    """Told when the next generation begins."""
    with tokenprune.apply(sd3, CATPolicy()):
        generate(sd3, times="fresh")
        assert told() == []
        generate(sd3, times="fresh", seeds=(3,), stop=1)
        assert len(told()) == 1
        assert told()[0].startswith("the last generation computed all tokens at each of its 6 steps, under Warmup")


def test_a_schedule_of_ones_own(sd3: nn.Module, generate: Callable[..., Tensor], told: Any) -> None:
    with tokenprune.apply(sd3, NoisePolicy(), schedule=Whole()):
        generate(sd3)
        assert told() == []
        generate(sd3, stop=1)
        assert len(told()) == 1
        assert "its 6 steps" in told()[0]


def test_windows_in_turns(sd3: nn.Module, predict: Any, make_latents: Any, make_condition: Any, told: Any) -> None:
    """A window that begins says nothing of another one's steps so far."""
    given, latents = make_condition((0,), 5), make_latents((0,), (4, 6))
    with torch.no_grad(), tokenprune.apply(sd3, NoisePolicy(0.3, 3), guidance="none") as handle:
        for time in TABLE:
            for name in "ab":
                with handle.window(name):
                    predict(sd3, latents, time.expand(1), given)
    assert told() == []


def test_a_pipeline_whose_sampler_tells(sd3: nn.Module, generate: Callable[..., Tensor], told: Any) -> None:
    """Models that get copies of timesteps: the sampler's table has the number of steps."""
    sampler = SimpleNamespace(timesteps=TABLE, step_index=None, begin_index=0)
    with tokenprune.apply(SimpleNamespace(transformer=sd3, scheduler=sampler), CATPolicy()):
        generate(sd3, times="fresh", stop=1)
    assert told()[0].startswith(NOTHING)


def test_large_caches(
    sd3: nn.Module, generate: Callable[..., Tensor], told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tokenprune.apply(sd3, NoisePolicy(0.3, 3)) as handle:
        generate(sd3)
        held = handle.report().cache_bytes
    monkeypatch.setattr(pruning_watch, "LARGE", held)
    with tokenprune.apply(sd3, NoisePolicy(0.3, 3)) as handle:
        generate(sd3)
        generate(sd3)
        handle.report()
    assert [message.partition(";")[0] for message in told()] == [f"the caches hold {memory_in_words(held)} by now"]


def test_compiled_graphs(sd3: nn.Module, told: Any) -> None:
    compiled = torch.compile(sd3, backend="eager")
    tokenprune.apply(compiled, NoisePolicy(0.3, 3)).remove()
    assert told() == ["compiled graphs of this process are dropped as hooks come or go; the next call compiles anew"]
    tokenprune.apply(sd3, NoisePolicy(0.3, 3)).remove()
    assert len(told()) == 1
