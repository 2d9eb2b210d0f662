"""Making good what forecasts did to the latents, once the next prediction is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenprune.interpolation import interpolated
from tokenprune.schedule import Predicts
from tokenprune.setting_types import Settings

TINY = 1e-6


@dataclass(frozen=True)
class FullStep:
    """What a sampler had at a full step.

    Attributes:
        latents: as they came [B, ...].
        prediction: made for them, after guidance [B, ...].
        signal: share a of the clean latents x, where latents are a x + s e with noise e; 0 where it is not known.
        noise: the share s; 0 where it is not known.
    """

    latents: Tensor
    prediction: Tensor
    signal: float
    noise: float

    @property
    def sigma(self) -> float:
        """The noise's share in a rectified flow, (1 - sigma) x + sigma e, that is the latents by another factor."""
        return self.noise / max(self.signal + self.noise, TINY)

    def velocity(self, predicts: Predicts) -> Tensor:
        """The velocity e - x of that flow which the prediction stands for [B, ...], float32."""
        if predicts == "velocity":
            return self.prediction.float()
        signal = max(self.signal, TINY)
        return ((signal + self.noise) * self.prediction.float() - self.latents.float()) / signal


@dataclass(frozen=True)
class DrawnAgain:
    """The steps between two full ones, drawn again with interpolated predictions.

    Attributes:
        step: index of the second full step.
        level: its noise level relative to the generation's first, from 1 down to 0.
        before: the first full step.
        now: the second, with the latents that forecasts led to.
        way: what to add to the latents to get to those that were drawn again [B, ...], float32.
        predicts: what the sampler takes a prediction for; None for anything else, or where it does not say.
        change: by how much the latents that were drawn again move if the second prediction is changed by so much
            [B, ...]; runs the sampler once more.
    """

    step: int
    level: float
    before: FullStep
    now: FullStep
    way: Tensor
    predicts: Predicts | None
    change: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Corrector(Settings):
    """Draw the steps since the last full one again, as they would have been with what is known now.

    Between two full steps the sampler went by forecasts. The second full step shows what they should have been, nearly:
    the values on the line between both predictions, at the times of the steps between. So the sampler takes these steps
    again with those values, from the latents of the first full step on, and goes on from where that leads. It is what
    predictor-corrector methods do (UniPC, Zhao et al., arXiv 2302.04867), with the sampler itself for its formula, so
    that it holds for whichever sampler a pipeline has; exact where the predictions are linear in time.

    The second prediction was made for the uncorrected latents, and answers to their error. With the error e (latents as
    they should be, less those it was made for), the prediction is taken to be off by -s e: so s e is added to it and to
    the forecasts that go out from it, and e = D / (1 - s A), where D is the way from the old latents to those drawn
    again, and A the change of the latter for a unit change of the prediction. s depends on what the model predicts:

    - velocity of a rectified flow: s = response * sigma^2, with the noise's share sigma of the latents. Models and
      guidance scales differ: the best response was 0 to 4 on shapes-sd3 with guidance 4, 8 with 7, and 20 or more with
      12. The pace of the predictions tells: a model that answers strongly to its latents turns fast on the way, too. So
      where no response is given, each image has its own, anew for each gap: response = 12 (P - 1.2), from 0 to 40, with
      the pace

          P = c / (sigma - sigma') (1 - (sigma + sigma') / 2)^0.7,  c = |v' - v| / |v'|

      of the predictions v and v' at the two full steps. All predictions change fastest at first; the last factor takes
      that out. Predictions of one size that have nothing in common are sqrt(2) apart. Where c is larger, the response
      is taken 2 / c^2 times: such latents are too far off for what is known of small errors.

    - noise: s = sqrt(n) + response * sigma^2 / 4 * a / (a + n)^2, for latents with shares a of the signal and n of the
      noise, a^2 + n^2 = 1. sigma and v are those of the rectified flow with the same latents but for a factor: sigma =
      n / (a + n), v = ((a + n) e - latents) / a; a / (a + n)^2 is what an answer of v is for e. Measured on
      shapes-pixart, s is 1.0 to 1.4 at guidance 3 where n is near 1, and up to 2 at guidance 7; 0.7 and 1.2 where n is
      0.45; so the first term is nearly all of it where guidance is weak.

    - else: s = 0.

    A profile takes the place of all this where one was measured (`tokenprune calibrate`): for that model, sampler,
    number of steps and budget, at some noise levels, e as a multiple of D and what the prediction is off by as a
    multiple of D, both by least squares over what a plain run drew.

    It needs the sampler, so it works where `apply` is given the pipeline. It leaves alone samplers that draw noise, and
    latents that the pipeline changes between steps.

    Args:
        response: a constant one, at least 0; 0 keeps predictions as they are, whatever the model predicts (s = 0).
            None: by the pace of predictions, as above.
        profile: points (noise level relative to the first step's, multiple for the latents, multiple for the
            prediction), levels falling; between them it is linear, beyond them constant. Empty: as above.

    Raises:
        ValueError: the response is below 0 or not finite, or the profile's levels do not fall.
    """

    PACE: ClassVar[float] = 0.7
    CALM: ClassVar[float] = 1.2
    STRENGTH: ClassVar[float] = 12.0
    STRONGEST: ClassVar[float] = 40.0
    SHARE_FOR_NOISE: ClassVar[float] = 0.25

    response: float | None = None
    profile: tuple[tuple[float, float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.response is not None and not 0 <= self.response < float("inf"):
            raise ValueError(f"response: expected a number of at least 0, got {self.response}")
        levels = [level for level, _, _ in self.profile]
        if any(later >= level for level, later in itertools.pairwise(levels)):
            raise ValueError(f"profile: expected levels that fall, got {levels}")
        if not all(math.isfinite(number) for point in self.profile for number in point):
            raise ValueError(f"profile: expected finite numbers, got {self.profile}")

    def correct(self, gap: DrawnAgain) -> tuple[Tensor, Tensor | None]:
        """What to add to the latents [B, ...], and to the prediction and forecasts from it [B, ...]; None for nothing.

        Args:
            gap: what was drawn again.
        """
        if self.profile:
            latents, prediction = self._measured(gap.level)
            return latents * gap.way, prediction * gap.way
        answer = self._answer(gap)
        if answer is None:
            return gap.way, None
        squared = _dot(gap.way, gap.way).clamp_min(1e-20)
        error = gap.way / (1 - answer * _dot(gap.change(gap.way), gap.way) / squared).clamp_min(0.5)
        return error, answer * error

    def _answer(self, gap: DrawnAgain) -> Tensor | float | None:
        """s: how much the prediction answers to an error of its latents [B, 1, ...]; None for not at all."""
        if gap.predicts is None or self.response == 0:
            return None
        response = self._found_response(gap, gap.predicts) if self.response is None else self.response
        steep = response * gap.now.sigma**2
        if gap.predicts == "velocity":
            return steep
        signal, noise = gap.now.signal, gap.now.noise
        size = math.hypot(signal, noise)  # latents are of this size where others have 1
        return math.sqrt(noise / size) / size + steep * (self.SHARE_FOR_NOISE * signal / (signal + noise) ** 2)

    def _found_response(self, gap: DrawnAgain, predicts: Predicts) -> Tensor:
        """The response that the pace of each image's predictions speaks for [B, 1, ...]."""
        now, before = gap.now.velocity(predicts), gap.before.velocity(predicts)
        squared = _dot(now - before, now - before) / _dot(now, now).clamp_min(1e-20)
        fallen = max(gap.before.sigma - gap.now.sigma, TINY)
        calmed = max(1 - (gap.now.sigma + gap.before.sigma) / 2, 0.0) ** self.PACE
        response = (self.STRENGTH * (squared.sqrt() * (calmed / fallen) - self.CALM)).clamp(0, self.STRONGEST)
        return response * (2 / squared.clamp_min(2))

    def _measured(self, level: float) -> tuple[float, float]:
        """The profile at a noise level."""
        levels, of_latents, of_prediction = zip(*self.profile, strict=True)
        rising = [-point for point in levels]
        return interpolated(-level, rising, of_latents), interpolated(-level, rising, of_prediction)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Sum of products for each image [B, 1, ...]."""
    return (one * other).sum(tuple(range(1, one.ndim)), keepdim=True)
