"""What is told of a generation before it runs is what its report says afterwards."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    CATPolicy,
    ConfigurationError,
    Expectation,
    HeldText,
    NoisePolicy,
    Plan,
    UnknownModelError,
    expect,
)
from tokenprune.embedded.load import load_shapes_flux, load_shapes_sd3


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_shapes_sd3()


@pytest.mark.parametrize("make", [tokenprune.plan, lambda _: CATPolicy(0.3, 3)], ids=["plan", "cat"])
def test_a_report_says_the_same_afterwards(make: Any, pipe: Any) -> None:
    plan = make(pipe)
    told = expect(pipe, plan, 10, text=49)
    with tokenprune.apply(pipe, plan) as handle:
        pipe("a red circle", num_inference_steps=10, guidance_scale=4.0, max_sequence_length=1, output_type="latent")
        report = handle.report()
    assert (told.tokens, told.text, told.size) == (256, 49, "64 x 64 pixels")
    assert sorted(told.counts) == sorted(step.tokens for step in report.steps)
    assert told.macs.total == pytest.approx(report.macs.total)
    assert told.dense_macs.total == pytest.approx(report.dense_macs.total)
    assert told.mac_ratio == pytest.approx(report.mac_ratio)
    assert told.cache_bytes == pytest.approx(report.cache_bytes, rel=0.01)
    assert sum(told.step_macs[count].total for count in told.counts) == pytest.approx(told.macs.total)
    assert told.notes == ()


def test_sizes_are_those_that_the_pipeline_draws_by_itself() -> None:
    flux = load_shapes_flux()
    told = expect(flux, CATPolicy(0.3, 8), 10)
    assert (told.tokens, told.size) == (4096, "256 x 256 pixels")
    assert expect(flux, CATPolicy(0.3, 8), 10, height=64, width=64).tokens == 256
    latents, *_ = flux.prepare_latents(1, 4, 256, 256, torch.float32, "cpu", torch.Generator())
    assert (flux.default_sample_size * flux.vae_scale_factor, latents.shape[1]) == (256, told.tokens)


@pytest.mark.parametrize("every", [2, None])
def test_steps_that_hold_the_text_have_costs_of_their_own(every: int | None, pipe: Any) -> None:
    """Also where no pruned step computes the text."""
    told = expect(pipe, Plan(CATPolicy(), HeldText(CATPolicy(0.3, 4).schedule(), every)), 8)
    assert set(told.held_macs) == {76}
    assert set(told.step_macs) == ({256, 76} if every else {256})
    pruned = (
        [told.step_macs[76].total] * 2 + [told.held_macs[76].total] * 2 if every else [told.held_macs[76].total] * 4
    )
    assert 4 * told.step_macs[256].total + sum(pruned) == pytest.approx(told.macs.total)
    assert "of 76 tokens with the text held" in str(told)


def test_it_prints(pipe: Any) -> None:
    told = expect(pipe, CATPolicy(0.3, 8), 10, height=128, width=64)
    title, *lines = str(told).splitlines()
    assert title == ("SD3Transformer2DModel, 128 x 64 pixels, 512 tokens and 333 of text, 10 steps: 8 full, 2 pruned")
    assert [line.split("  ")[1] for line in lines] == ["a step", "all steps", "caches"]
    assert "of 153 tokens" in lines[0]
    assert repr(told).startswith("Expectation(10 steps: 8 full, 2 pruned; ")
    assert "<th style='text-align:left'>caches</th>" in told._repr_html_()


def test_too_few_steps_are_noted_and_none_refused(pipe: Any) -> None:
    (note,) = expect(pipe, CATPolicy(0.3, 8), 4).notes
    assert note.startswith("nothing is pruned under WarmupSchedule(alpha=0.3, warmup_steps=8")
    assert note.endswith("which needs 9 steps to prune any")
    (note,) = expect(pipe, tokenprune.plan(pipe), 4).notes
    assert note.startswith("under PlacedSchedule(budget=0.5, steps=28), pictures of fewer than 10 steps change visibly")
    assert expect(pipe, tokenprune.plan(pipe), 10).notes == ()
    (note,) = expect(pipe, tokenprune.plan(pipe, 1.0), 4).notes
    assert note == "nothing is pruned under PlacedSchedule(budget=1.0, steps=28)"
    with pytest.raises(ConfigurationError, match="steps: expected at least 1, got 0"):
        expect(pipe, CATPolicy(), 0)


def test_what_cannot_be_told_is_refused(sd3: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match="height: expected a multiple of 16 pixels"):
        expect(sd3, CATPolicy(), height=30)
    with pytest.raises(UnknownModelError, match="Linear: no adapter describes this model"):
        expect(nn.Linear(2, 2), CATPolicy())


@pytest.mark.parametrize(("name", "least"), [("height", 1), ("width", 1), ("frames", 1), ("batch", 1), ("text", 0)])
def test_numbers_that_are_too_small(name: str, least: int, pipe: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: expected at least {least}, got {least - 1}$"):
        expect(pipe, CATPolicy(), **{name: least - 1})


def test_an_adapter_without_examples(sd3: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match="SD3Transformer2DModel: no example says how its pipeline calls it"):
        expect(sd3, CATPolicy(), adapter=lambda _: pytest.fail("not asked"))


def test_apply_logs_it_where_it_is_listened_to(sd3: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "tokenprune"]

    with tokenprune.apply(sd3, NoisePolicy(0.3, 3)):
        assert told() == []
    caplog.set_level(logging.INFO, "tokenprune")
    before = torch.random.get_rng_state()
    with tokenprune.apply(sd3, NoisePolicy(0.3, 3)):
        (line,) = told()
    assert line.startswith("SD3Transformer2DModel, ")
    assert "28 steps: 3 full, 25 pruned; a step full " in line
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_log_is_no_reason_to_stop(sd3: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tokenprune")
    from tokenprune_adapters.sd3 import module_map

    with tokenprune.apply(sd3, NoisePolicy(0.3, 3), adapter=lambda model: module_map(model)):
        pass
    assert "cannot be told in advance: SD3Transformer2DModel: no example says" in caplog.text


def test_a_plan_made_for_a_model_says_it_where_it_is_printed(pipe: Any) -> None:
    plan = tokenprune.plan(pipe, 0.5)
    assert str(plan) == f"{plan!r}\n{expect(pipe, plan)}"
    assert "28 steps: 14 full, 14 skipped" in plan._repr_html_()
    for other in (Plan(plan.policy, plan.schedule, plan.reuse, plan.corrector), pickle.loads(pickle.dumps(plan))):
        assert other == plan
        assert hash(other) == hash(plan)
        assert str(other) == repr(other) == repr(plan)  # it may be for another model


def test_a_plan_does_not_keep_its_model(sd3: nn.Module) -> None:
    model = copy.deepcopy(sd3)
    plan = tokenprune.plan(model)
    del model
    gc.collect()
    assert str(plan) == f"{plan!r}\nthe model that this plan was made for is gone"


def test_a_report_says_it_until_the_first_generation_begins(
    sd3: nn.Module, generate: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("tokenprune.api.told_in_advance", lambda *given: asked.append(given) or "so much\n  so long")
    with tokenprune.apply(sd3, NoisePolicy(0.3, 3)) as handle:
        assert asked == []
        assert [handle.report().notes for _ in range(2)] == [("so much; so long",)] * 2
        assert len(asked) == 1
        generate(sd3)
        assert handle.report().notes == ()
        handle.reset()
        assert handle.report().notes == ()
    assert len(asked) == 1


def test_a_plan_and_a_policy_are_both_taken(pipe: Any) -> None:
    policy = NoisePolicy(0.5, 2)
    both = [expect(pipe, given, 4) for given in (policy, Plan(policy))]
    assert isinstance(both[0], Expectation)
    assert both[0] == both[1]
