"""Measuring how far a model's own latents and predictions are off where a plan corrects them (`Corrector.profile`).

The plain model draws some prompts, and its latents and predictions are kept. Then the plan draws them, but at each
full step it is told what the plain model had there, and goes on from that: so every gap begins without an error, and
what is off at its end is what this one gap did. There D is the way from the latents to those drawn again (`Corrector`),
e what the latents lack, and u what the prediction lacks. Over all pictures at one noise level, least squares give the
multiples of D that come nearest to both: <e, D> / <D, D> and <u, D> / <D, D>.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tokenprune
from tokenprune.bench.measuring.fidelity import Pictures
from tokenprune.bench.measuring.measure import Task, batches, generate
from tokenprune.bench.tuning.placing import Predictions
from tokenprune.engine.sampler import Sampler
from tokenprune.errors import ConfigurationError
from tokenprune.plans.plan import Plan
from tokenprune.reuse.corrector import Corrector, DrawnAgain

DIGITS = 4
"""Of a profile's numbers, which are means over few pictures."""


@dataclass(frozen=True)
class PlainStep:
    """What the plain model had at a step: latents [B, ...], and the prediction after guidance [B, ...]."""

    latents: Tensor
    prediction: Tensor


@dataclass
class Sums:
    """Sums over pictures at one noise level: <D, D>, <e, D> and <u, D>."""

    squared: float = 0.0
    latents: float = 0.0
    prediction: float = 0.0


@dataclass(frozen=True)
class Measuring(Corrector):
    """Puts what the plain model had in the place of what forecasts led to, and notes how far that was off.

    Args:
        plain: every step of the plain model, for the prompts that are drawn.
        found: takes the sums by noise level.
    """

    plain: list[PlainStep] = field(default_factory=list)
    found: dict[float, Sums] = field(default_factory=dict)

    def correct(self, gap: DrawnAgain) -> tuple[Tensor, Tensor | None]:
        """What is lacking, all of it."""
        true = self.plain[gap.step]
        latents, prediction = (
            each.float() - was.float()
            for each, was in ((true.latents, gap.now.latents), (true.prediction, gap.now.prediction))
        )
        sums = self.found.setdefault(gap.level, Sums())
        sums.squared += float((gap.way * gap.way).sum())
        sums.latents += float((latents * gap.way).sum())
        sums.prediction += float((prediction * gap.way).sum())
        return latents, prediction


@dataclass(frozen=True)
class Measured:
    """What a plan and the plain model show on some prompts.

    Attributes:
        plan: with a corrector whose profile was measured on them; None where there was nothing to make good, as where
            each skipped step has the timestep of the full one before it.
        dense: the plain model's pictures.
        plain: the plain model's predictions; None where the sampler does not tell its steps, or takes two at one time.
    """

    plan: Plan | None
    dense: Pictures
    plain: Predictions | None


def measured(pipe: Any, plan: Plan, task: Task) -> Measured:
    """Let the plain model draw a task's prompts, then a plan, which is told at its full steps what it should have had.

    Args:
        pipe: a pipeline whose sampler gets its predictions in the shape of its latents; left as it was.
        plan: with a corrector.
        task: what to draw.

    Raises:
        ConfigurationError: the plan has no corrector, or nothing was corrected: no step was skipped, or the sampler
            draws noise, or the pipeline changes the latents between steps.
    """
    if plan.corrector is None:
        raise ConfigurationError(f"plan: expected one with a corrector to calibrate, got {plan}")
    found: dict[float, Sums] = {}
    pictures, products = [], []
    for places in batches(task):
        with recorded(pipe.scheduler) as plain:
            pictures.append(generate(pipe, task.steps, task, places))
        products.append(products_of(plain))
        with tokenprune.apply(pipe, replace(plan, corrector=Measuring(plain=plain, found=found))):
            generate(pipe, task.steps, task, places)
    if not found:
        raise ConfigurationError(
            f"calibrate: expected steps that are corrected, got none in {task.steps} steps: none is skipped, or the "
            f"sampler {type(pipe.scheduler).__name__} draws noise, or the pipeline changes latents between steps"
        )
    points = sorted(((level, sums) for level, sums in found.items() if sums.squared > 0), reverse=True)
    profile = tuple(
        (level, round(sums.latents / sums.squared, DIGITS), round(sums.prediction / sums.squared, DIGITS))
        for level, sums in points
    )
    with_profile = replace(plan, corrector=replace(plan.corrector, profile=profile)) if profile else None
    return Measured(with_profile, np.concatenate(pictures), predictions_of(pipe, np.sum(products, axis=0)))


def products_of(plain: list[PlainStep]) -> NDArray[np.float64]:
    """Products of the predictions of two steps of a batch, summed over elements and pictures [N, N]."""
    predictions = torch.stack([step.prediction.flatten() for step in plain]).double()
    found: NDArray[np.float64] = (predictions @ predictions.T).cpu().numpy()
    return found


def predictions_of(pipe: Any, products: NDArray[np.float64]) -> Predictions | None:
    """With the times and sizes of steps; None where the sampler does not tell its steps, or takes two at one time."""
    sampler = Sampler(pipe)
    times = sampler.times
    sizes = sampler.sizes(len(times))
    if sizes is None or len(set(times)) < len(times) or products.shape != (len(times), len(times)):
        return None
    return Predictions(products, times, sizes)


@contextmanager
def recorded(scheduler: Any) -> Iterator[list[PlainStep]]:
    """What a sampler gets at each of its steps meanwhile."""
    found: list[PlainStep] = []
    own = scheduler.step

    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(PlainStep(sample.clone(), model_output.clone()))
        return own(model_output, timestep, sample, *args, **kwargs)

    scheduler.step = step
    try:
        yield found
    finally:
        del scheduler.step
