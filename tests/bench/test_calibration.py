"""Measuring a plan's corrections, on shapes-sd3 with few steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

import tokenprune
from tokenprune import Corrector, DensePolicy, EvenSchedule, FixedSchedule, Plan, RefreshSchedule, Taylor
from tokenprune.bench.measuring.fidelity import psnr_of_each
from tokenprune.bench.measuring.measure import Task, draw_all, generate
from tokenprune.bench.tuning import calibration
from tokenprune.bench.tuning.calibration import AS_IT_WAS, Contest, calibrate, corrections, fit, places
from tokenprune.bench.tuning.corrections import Measuring, PlainStep, Sums, measured, recorded
from tokenprune.bench.tuning.placing import Predictions
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED
from tokenprune.errors import ConfigurationError
from tokenprune.plans.presets import best_plan
from tokenprune.reuse.corrector import DrawnAgain, FullStep

EVERY_OTHER = Plan(DensePolicy(), RefreshSchedule(2, last_full=1), Taylor(), Corrector())


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = EMBEDDED["shapes-sd3"].load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def task_of(split: Any, prompts: int, steps: int, batch: int) -> Task:
    texts = scenes.texts(split, prompts)
    return Task(texts, steps, 4.0, batch, EMBEDDED["shapes-sd3"].arguments)


def test_what_is_lacking_is_summed_up_by_noise_level_and_given_back() -> None:
    way = torch.tensor([[1.0, 2.0]])
    plain = [PlainStep(torch.tensor([[3.0, 5.0]]), torch.tensor([[-1.0, 0.0]]))]
    measuring = Measuring(plain=plain)
    zero = torch.zeros(1, 2)
    before, now = FullStep(zero, zero, 0.0, 0.0), FullStep(torch.ones(1, 2), zero, 0.0, 0.0)
    seen = DrawnAgain(0, 0.5, before, now, way, None, lambda change: change)
    for level in (0.5, 0.5, 0.25):
        latents, prediction = measuring.correct(replace(seen, level=level))
        assert prediction is not None
        assert (latents.tolist(), prediction.tolist()) == ([[2.0, 4.0]], [[-1.0, 0.0]])
    assert measuring.found == {0.5: Sums(10.0, 20.0, -2.0), 0.25: Sums(5.0, 10.0, -1.0)}


def test_told_what_the_plain_model_had_the_plan_draws_its_pictures(pipe: Any) -> None:
    """Every gap is made good, so that the pictures are those of the plain model: the last step is full."""
    task = task_of("tuning", 1, 8, 1)
    with recorded(pipe.scheduler) as plain:
        dense = generate(pipe, task.steps, task, range(1))
    assert len(plain) == task.steps
    assert "step" not in vars(pipe.scheduler)
    with tokenprune.apply(pipe, replace(EVERY_OTHER, corrector=Measuring(plain=plain))):
        told = generate(pipe, task.steps, task, range(1))
    with tokenprune.apply(pipe, EVERY_OTHER):
        corrected = generate(pipe, task.steps, task, range(1))
    assert np.abs(told - dense).max() < 1e-4
    assert np.abs(corrected - dense).max() > 1e-3


def test_measured_answers_are_nearer_on_what_it_was_measured_on(pipe: Any) -> None:
    task = task_of("tuning", 2, 8, 1)
    found = measured(pipe, EVERY_OTHER, task)
    plan, dense = found.plan, found.dense
    assert plan is not None
    assert plan.corrector is not None
    assert len(plan.corrector.profile) == 3  # after each of the gaps: both batches have the same full steps
    assert plan == replace(EVERY_OTHER, corrector=replace(Corrector(), profile=plan.corrector.profile))
    assert np.array_equal(dense, draw_all(pipe, task.steps, task))
    psnr = []
    for each in (EVERY_OTHER, plan):
        with tokenprune.apply(pipe, each):
            psnr.append(psnr_of_each(draw_all(pipe, task.steps, task), dense))
    assert sum(filter(None, psnr[1])) > sum(filter(None, psnr[0]))


def test_the_plain_models_predictions_are_kept_with_their_times(pipe: Any) -> None:
    """Products over both prompts; a step moves the latents by the way of its sigma."""
    task = task_of("tuning", 2, 4, 1)
    plain = measured(pipe, EVERY_OTHER, task).plain
    assert plain is not None
    products = np.zeros((4, 4))
    for place in range(2):
        with recorded(pipe.scheduler) as steps:
            generate(pipe, task.steps, task, range(place, place + 1))
        predictions = np.stack([step.prediction.double().numpy().ravel() for step in steps])
        products += predictions @ predictions.T
    np.testing.assert_allclose(plain.products, products)
    assert list(plain.times) == pipe.scheduler.timesteps.tolist()
    sigmas = pipe.scheduler.sigmas.numpy()
    np.testing.assert_allclose(plain.sizes, sigmas[:-1] - sigmas[1:], rtol=1e-5)


def test_samplers_with_two_calls_at_one_time_have_no_places(pipe: Any) -> None:
    """Half of their calls are full, one at each timestep: the skipped ones take its prediction, and nothing is off."""
    heun = FlowMatchHeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with mock.patch.object(pipe, "scheduler", heun):
        task = task_of("tuning", 1, 6, 1)
        found = measured(pipe, best_plan(6 / 11), task)
        assert found.plain is None
        assert found.plan is None
        assert measured(pipe, best_plan(3 / 11), task).plan is not None
    assert "measured answers" not in corrections(best_plan(6 / 11), found.plan, "velocity")


def test_what_cannot_be_calibrated_is_refused(pipe: Any) -> None:
    with pytest.raises(ConfigurationError, match="plan: expected one with a corrector to calibrate"):
        fit(pipe, replace(EVERY_OTHER, corrector=None), task_of("tuning", 1, 4, 1))
    with pytest.raises(ConfigurationError, match="calibrate: expected steps that are corrected, got none in 3 steps"):
        fit(pipe, best_plan(0.99), task_of("tuning", 1, 3, 1))


def test_the_nearest_of_all_variants_is_kept(pipe: Any) -> None:
    """Each is drawn; the nearest correction has its full steps laid elsewhere; the nearest of all is the result."""
    task = task_of("tuning", 2, 8, 2)
    told: list[str] = []
    found = fit(pipe, best_plan(0.5), task, told.append)
    assert told == ["measuring", "corrections", "full steps"]
    names = list(found.tried)
    assert names[:6] == [AS_IT_WAS, "measured answers", *(f"response {number}" for number in (0, 6, 12, 24))]
    nearest = max(names[:6], key=found.tried.__getitem__)
    before = "" if nearest == AS_IT_WAS else f"{nearest}, "
    first = [f"{share} of the steps first" for share in (0, 0.07, 0.15, 0.3)]
    assert names[6:] == [before + each for each in (*first, "full steps where the plain model asks for them")]
    assert found.name == max(names, key=found.tried.__getitem__)
    with tokenprune.apply(pipe, found.plan) as handle:
        psnr = psnr_of_each(draw_all(pipe, task.steps, task), found.dense)
        assert handle.report().mac_ratio == pytest.approx(0.5)
    assert found.tried[found.name] == pytest.approx(sum(value or 0 for value in psnr) / 2)


def test_variants_are_those_that_the_model_can_have() -> None:
    plan = best_plan(0.2)
    responses = [f"response {response}" for response in (0, 6, 12, 24)]
    for meaning in ("velocity", "noise"):
        assert list(corrections(plan, EVERY_OTHER, meaning)) == ["measured answers", *responses]
    assert list(corrections(plan, EVERY_OTHER, None)) == ["measured answers"]
    found = places(plan, None)
    assert list(found) == ["0 of the steps first", "0.07 of the steps first", "0.15 of the steps first"]
    assert {each.schedule for each in found.values()} == {EvenSchedule(0.2, first) for first in (0, 0.07, 0.15)}
    still = Predictions(np.ones((10, 10)), range(10), [1.0] * 10)
    *rest, asked_for = places(plan, still).values()
    assert rest == list(found.values())
    assert isinstance(asked_for.schedule, FixedSchedule)
    assert (len(asked_for.schedule.full), asked_for.schedule.steps) == (2, 10)
    assert places(EVERY_OTHER, still) == {}


@pytest.mark.parametrize(("latents", "kept"), [(1.0, True), (-1.0, False)])
def test_the_plan_stays_as_it_was_where_calibration_did_not_help(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, latents: float, kept: bool
) -> None:
    """Latents moved the wrong way are worse than no correction at all."""
    poor = replace(EVERY_OTHER, corrector=Corrector(profile=((1.0, -latents, 0.0),)))
    other = replace(poor, corrector=Corrector(profile=((1.0, latents, 0.0),)))

    def fitted(pipe: Any, plan: Plan, task: Task, begin: Any) -> Contest:
        found = Contest(pipe, task, draw_all(pipe, task.steps, task), plan)
        found.enter({"another": other})
        found.plan, found.name = other, "another"  # the nearer one or not
        return found

    monkeypatch.setattr(calibration, "fit", fitted)
    told: list[str] = []
    tasks = task_of("tuning", 2, 8, 2), task_of("held-out", 2, 8, 2)
    found = calibrate(pipe, poor, *tasks, told.append)
    assert found.plan is (other if kept else poor)
    assert found.won is kept
    assert found.text.startswith("Calibration helped (another: +" if kept else "Calibration did not help (another: -")
    assert [row.name for row in found.rows] == ["as it was", "calibrated", "plain, 5 steps"]
    assert told == ["plain", *(row.name for row in found.rows)]
