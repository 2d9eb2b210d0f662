"""Making good what forecasts did to the latents, once the next prediction is known."""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenprune.setting_types import Settings


@dataclass(frozen=True)
class DrawnAgain:
    """The steps between two full ones, drawn again with interpolated predictions.

    Attributes:
        step: index of the second full step.
        level: its noise level relative to the generation's first, from 1 down to 0.
        latents: of the second full step, as forecasts led to them [B, ...].
        prediction: of the second full step, made for those latents [B, ...], after guidance.
        before: of the first full step [B, ...], likewise.
        way: what to add to the latents to get to those that were drawn again [B, ...], float32.
        predicts: what the sampler takes a prediction for; None for anything else, or where it does not say.
        signal: share a of the clean latents x at the second full step, where latents are a x + s e.
        noise: share s of the noise e.
        noise_before: the same share at the first full step.
        change: by how much the latents that were drawn again move if the second prediction is changed by so much
            [B, ...]; runs the sampler once more.
    """

    step: int
    level: float
    latents: Tensor
    prediction: Tensor
    before: Tensor
    way: Tensor
    predicts: Literal["noise", "velocity"] | None
    signal: float
    noise: float
    noise_before: float
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

    - noise: s = sqrt(sigma), sigma being the noise's share of the latents. Measured on shapes-pixart: 1.0 to 1.5
      where sigma is near 1, 0.7 at 0.45, 0.5 at 0.25.
    - velocity of a rectified flow: s = response * sigma^2. Models and guidance scales differ: the best response was 0
      to 4 on shapes-sd3 with guidance 4, 8 with 7, and 20 or more with 12. The pace of the predictions tells: a model
      that answers strongly to its latents turns fast on the way, too. So where no response is given, each image has
      its own, anew for each gap: response = 12 (P - 1.2), from 0 to 40, with the pace

          P = c / (sigma - sigma') (1 - (sigma + sigma') / 2)^0.7,  c = |v' - v| / |v'|

      of the predictions v and v' at the two full steps. All predictions change fastest at first; the last factor takes
      that out. Predictions of one size that have nothing in common are sqrt(2) apart. Where c is larger, the response
      is taken 2 / c^2 times: such latents are too far off for what is known of small errors.

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
        if gap.predicts == "velocity":
            return (self._found_response(gap) if self.response is None else self.response) * gap.noise**2
        size = math.hypot(gap.signal, gap.noise)  # latents are of this size where others have 1
        return math.sqrt(gap.noise / size) / size

    def _found_response(self, gap: DrawnAgain) -> Tensor:
        """The response that the pace of each image's predictions speaks for [B, 1, ...]."""
        now, before = gap.prediction.float(), gap.before.float()
        squared = _dot(now - before, now - before) / _dot(now, now).clamp_min(1e-20)
        fallen = max(gap.noise_before - gap.noise, 1e-6)
        calmed = max(1 - (gap.noise + gap.noise_before) / 2, 0.0) ** self.PACE
        response = (self.STRENGTH * (squared.sqrt() * (calmed / fallen) - self.CALM)).clamp(0, self.STRONGEST)
        return response * (2 / squared.clamp_min(2))

    def _measured(self, level: float) -> tuple[float, float]:
        """The profile at a noise level."""
        later = bisect([-point[0] for point in self.profile], -level)
        before, after = self.profile[max(later - 1, 0)], self.profile[min(later, len(self.profile) - 1)]
        width = before[0] - after[0]
        share = min(1.0, max(0.0, (before[0] - level) / width)) if width else 0.0
        latents, prediction = (a + share * (b - a) for a, b in zip(before[1:], after[1:], strict=True))
        return latents, prediction


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Sum of products for each image [B, 1, ...]."""
    return (one * other).sum(tuple(range(1, one.ndim)), keepdim=True)
