"""A pipeline's sampler, looked at from outside: nothing of it is changed."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from torch import Tensor

from tokenprune.schedule import Predicts

SCALED_BY_SIGNAL = frozenset(
    {"EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler"}
)
"""Samplers whose latents are x + s e, where others have sqrt(1 - s^2) x + s e."""


def predicts(scheduler: Any) -> Predicts | None:
    """What a scheduler takes the model's prediction for; None for anything else, or where it does not say."""
    config = getattr(scheduler, "config", {})
    said = config.get("prediction_type")
    if type(scheduler).__name__.startswith("FlowMatch") or said == "flow_prediction" or config.get("use_flow_sigmas"):
        return "velocity"
    return "noise" if said == "epsilon" and isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor) else None


def signal_and_noise(scheduler: Any, time: float) -> tuple[float, float]:
    """A and s of a timestep of the scheduler's, whose latents are a x + s e; it must predict noise or velocity."""
    if predicts(scheduler) == "velocity":
        noise = time / float(scheduler.config.get("num_train_timesteps", 1000))
        return 1 - noise, noise
    kept = scheduler.alphas_cumprod
    signal = float(kept[min(len(kept) - 1, max(0, round(time)))])
    signal, noise = math.sqrt(signal), math.sqrt(max(1 - signal, 1e-6))
    return (1.0, noise / signal) if type(scheduler).__name__ in SCALED_BY_SIGNAL else (signal, noise)


class Sampler:
    """The scheduler that a pipeline has when it is asked for; users put in others.

    Args:
        pipeline: holds it as `scheduler`.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._read: Tensor | None = None
        self._values: tuple[float, ...] = ()

    @property
    def scheduler(self) -> Any:
        """It itself; None where the pipeline has none."""
        return getattr(self._pipeline, "scheduler", None)

    @property
    def timesteps(self) -> Tensor | None:
        """Its table of timesteps, another tensor for each generation; None where there is none."""
        table = getattr(self.scheduler, "timesteps", None)
        return table if isinstance(table, Tensor) else None

    @property
    def times(self) -> tuple[float, ...]:
        """The entries of the table, none where there is no table; waits for the device once for each table."""
        table = self.timesteps
        if self._read is not table:
            self._read = table
            self._values = () if table is None else tuple(float(value) for value in table.tolist())
        return self._values

    @property
    def remaining(self) -> int | None:
        """How many entries of the table are left, the coming step included; None where it does not count them."""
        scheduler, table = self.scheduler, self.timesteps
        places = (getattr(scheduler, name, None) for name in ("step_index", "begin_index"))
        place = next((place for place in places if isinstance(place, int)), None)
        if table is None or place is None or not 0 <= place < len(table):
            return None
        return len(table) - place

    @property
    def coming(self) -> tuple[float, ...] | None:
        """The entries of the table that are left, the coming step's first."""
        left = self.remaining
        return None if left is None else self.times[len(self.times) - left :]

    @property
    def predicts(self) -> Predicts | None:
        """What it takes the model's prediction for."""
        return predicts(self.scheduler)

    def sigmas(self, count: int) -> tuple[float, ...] | None:
        """The noise's share of the latents at each of the last steps of the table: s / (a + s) of latents a x + s e.

        None where the scheduler does not say what it takes predictions for.
        """
        shares = self._shares(count)
        return None if shares is None else tuple(noise / (signal + noise) for signal, noise in shares)

    def sizes(self, count: int) -> tuple[float, ...] | None:
        """How far a prediction of size 1 moves the latents at each of the last steps of the table.

        With latents a x + s e that is |s' - s| for a velocity, and for noise |s' - s a' / a| / sqrt(a'^2 + s'^2), which
        takes latents to size 1 (Euler's method and DDIM, which multistep samplers refine). None where the scheduler
        does not say what it takes predictions for.
        """
        shares = self._shares(count)
        if shares is None:
            return None
        steps = pairwise([*shares, (1.0, 0.0)])
        if self.predicts == "velocity":
            return tuple(abs(later[1] - noise) for (_, noise), later in steps)
        return tuple(
            abs(s_later - s * a_later / a) / math.hypot(a_later, s_later) for (a, s), (a_later, s_later) in steps
        )

    def _shares(self, count: int) -> list[tuple[float, float]] | None:
        """Those of signal and noise at each of the last steps of the table."""
        times = self.times
        if self.predicts is None or not 0 < count <= len(times):
            return None
        return [signal_and_noise(self.scheduler, time) for time in times[len(times) - count :]]
