"""Rehearsed generations against real ones."""

from __future__ import annotations

import pytest
import torch
from tiny import ALL

import tokenprune
from tokenprune import CATPolicy, HeldText, Plan, RefreshSchedule, SequentialPolicy
from tokenprune.macs.breakdown import commonest_call, of_layers
from tokenprune.macs.counting import Computed, counting_calls
from tokenprune.macs.rehearsal import CallPattern, counts_of, rehearse
from tokenprune.plans.presets import best_plan, token_plan
from tokenprune.registry import find_adapter
from tokenprune.schedule import BudgetSchedule

STEPS = 10
CASES = {case.name: case for case in ALL}


@pytest.mark.parametrize(
    "plan", [best_plan(0.5), token_plan(0.5), Plan(CATPolicy(0.3, 4))], ids=["skipping", "pruning", "cat"]
)
@pytest.mark.parametrize("name", ["sd3", "pixart", "flux", "lumina2", "wan"])
@pytest.mark.parametrize("calls", [1, 2])
def test_it_computes_and_keeps_what_a_real_generation_does(name: str, plan: Plan, calls: int) -> None:
    model, inputs = CASES[name].make(), CASES[name].inputs()
    found = find_adapter(model)(model)
    rehearsal = rehearse(model, found, CallPattern(inputs, calls), plan, STEPS)
    table = torch.linspace(1000, 100, STEPS) if not found.time_rises else torch.linspace(0, 0.9, STEPS)
    consecutive = Plan(SequentialPolicy(), plan.schedule or plan.policy.schedule(), plan.reuse)
    with tokenprune.apply(model, consecutive, guidance="none") as handle:
        for time in table:
            for _ in range(calls):
                with torch.no_grad():
                    model(**{**inputs, found.time: time.expand(2)})
        report = handle.report()
    counts = tuple(step.tokens for step in report.steps)
    assert rehearsal.counts == counts or (0 in counts and sorted(rehearsal.counts) == sorted(counts))
    assert rehearsal.macs == report.macs
    assert rehearsal.dense == report.dense_macs
    assert rehearsal.cache_bytes == report.cache_bytes
    assert rehearsal.grid == report.grid or rehearsal.tokens == torch.Size(report.grid).numel()


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("every", [2, None])
def test_held_text_is_counted(name: str, every: int | None) -> None:
    model, inputs = CASES[name].make(), CASES[name].inputs()
    found, policy = find_adapter(model)(model), SequentialPolicy(0.3, 4)
    plan = Plan(policy, HeldText(policy.schedule(), every))
    rehearsal = rehearse(model, found, CallPattern(inputs), plan, STEPS)
    assert [i for i, text in enumerate(rehearsal.texts) if not text] == ([4, 6, 8] if every else list(range(4, STEPS)))
    with tokenprune.apply(model, plan, guidance="none") as handle, torch.no_grad(), counting_calls(model) as counted:
        for time in torch.linspace(1000, 100, STEPS):
            model(**{**inputs, found.time: time.expand(2)})
        macs = handle.report().macs
    assert rehearsal.macs == macs == counted.macs
    assert macs.total < rehearse(model, found, CallPattern(inputs), Plan(policy), STEPS).macs.total


def test_keys_and_values_of_another_precision_and_size() -> None:
    model, inputs = CASES["pixart"].make(), CASES["pixart"].inputs()
    found = find_adapter(model)(model)
    whole, half = (
        rehearse(model, found, CallPattern(inputs), token_plan(0.5), 4, t) for t in (torch.float32, torch.float16)
    )
    assert whole.key_bytes() == 2 * half.key_bytes() == 2 * 2 * 2 * 24 * 16 * 4
    assert whole.key_bytes(48) == 2 * whole.key_bytes()
    assert all(parameter.dtype == torch.float32 and not parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("every", [2, None])
def test_modules_of_a_call_that_holds_the_text(every: int | None) -> None:
    model, inputs = CASES["sd3"].make(), CASES["sd3"].inputs()
    plan = Plan(SequentialPolicy(), HeldText(SequentialPolicy(0.3, 4).schedule(), every))
    run = rehearse(model, find_adapter(model)(model), CallPattern(inputs), plan, STEPS)
    assert commonest_call(run) == Computed(7, with_text=False)
    whole, *_ = of_layers(model, run, commonest_call(run), depth=1)
    assert whole.linear_pruned_T == pytest.approx(run.layers[Computed(7, False)][""].linear / 1e12)


def test_modules_add_up_to_the_model() -> None:
    model, inputs = CASES["sd3"].make(), CASES["sd3"].inputs()
    rehearsal = rehearse(model, find_adapter(model)(model), CallPattern(inputs), token_plan(0.5), STEPS)
    for layers in rehearsal.layers.values():
        children = [name for name, _ in model.named_children() if name != "transformer_blocks"]
        children += [f"transformer_blocks.{block}" for block in range(3)]
        assert sum(layers[name].linear for name in children if name in layers) == layers[""].linear
        assert sum(layers[name].attention for name in children if name in layers) == layers[""].attention
        assert sum(layers[f"transformer_blocks.{block}.attn"].attention for block in range(3)) == layers[""].attention


def test_counts_follow_the_schedule() -> None:
    assert counts_of(RefreshSchedule(3, 0.25), 8, 7) == (8, 2, 2, 8, 2, 2, 8)
    assert counts_of(RefreshSchedule(3, 0.25), 8, 7, least=3) == (8, 3, 3, 8, 3, 3, 8)
    counts = counts_of(BudgetSchedule(0.5), 1000, 28)
    assert sum(counts) / 28_000 == pytest.approx(0.5, abs=0.001)
