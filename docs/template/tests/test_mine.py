"""What I add works with tokenprune, by itself and by name."""

from __future__ import annotations

from pathlib import Path

import torch

import tokenprune
from tokenprune import Selection
from tokenprune.schedule import rehearsed
from tokenprune.testing import check_adapter, check_policy
from tokenprune_mine.forecast import MeanDrift
from tokenprune_mine.model import MyTransformer, example
from tokenprune_mine.policy import DriftPolicy
from tokenprune_mine.schedule import Alternate

PLAN = Path(__file__).parents[1] / "plan.toml"


def test_the_adapter_describes_the_model() -> None:
    print(check_adapter(MyTransformer, example()[1]))


def test_the_policy_keeps_the_rules() -> None:
    print(check_policy(DriftPolicy))


def test_the_schedule() -> None:
    schedule = Alternate(alpha=0.25, warmup_steps=2)
    assert [schedule.count(step, 96) for step in rehearsed(schedule, 6)] == [96, 96, 24, 96, 24, 96]


def test_the_forecast_is_exact_where_all_tokens_move_alike() -> None:
    first = torch.randn(2, 6, 3)
    selection = Selection.from_index(torch.tensor([[0, 4], [1, 5]]), 6)
    state = MeanDrift().start()
    state.record(first, 1000.0)
    torch.testing.assert_close(state.complete(selection.gather(first + 0.5), selection, 900.0), first + 0.5)
    torch.testing.assert_close(state.forecast(800.0), first + 0.5)


def test_all_four_prune_a_generation() -> None:
    """The adapter is found by the model's class, the other three by their names in the file."""
    model, inputs = example()
    plan = tokenprune.load_plan(PLAN)
    with tokenprune.apply(model, plan, discover=False) as handle, torch.no_grad():
        for time in torch.linspace(1, 0.1, 6):
            model(inputs["latents"], time.expand(2))
        assert [step.tokens for step in handle.report().steps] == [96, 96, 24, 96, 24, 96]
