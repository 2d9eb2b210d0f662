"""Making good what forecasts did to the latents, once the next prediction is known."""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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
        way: what to add to the latents to get to those that were drawn again [B, ...], float32.
        predicts: what the sampler takes a prediction for; None for anything else, or where it does not say.
        signal: share a of the clean latents x at the second full step, where latents are a x + s e.
        noise: share s of the noise e.
        change: by how much the latents that were drawn again move if the second prediction is changed by so much
            [B, ...]; runs the sampler once more.
    """

    step: int
    level: float
    latents: Tensor
    prediction: Tensor
    way: Tensor
    predicts: Literal["noise", "velocity"] | None
    signal: float
    noise: float
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
    - velocity of a rectified flow: s = response * sigma^2. Measured on shapes-sd3: with guidance 4, 7 and 12 about 5,
      10 and 25 sigma^2, falling to 0 with the noise.
    - else: s = 0.

    A profile takes the place of all this where one was measured (`tokenprune calibrate`): for that model, sampler,
    number of steps and budget, at some noise levels, e as a multiple of D and what the prediction is off by as a
    multiple of D, both by least squares over what a plain run drew.

    It needs the sampler, so it works where `apply` is given the pipeline. It leaves alone samplers that draw noise, and
    latents that the pipeline changes between steps.

    Args:
        response: as above, at least 0; 0 keeps predictions as they are, whatever the model predicts (s = 0).
        profile: points (noise level relative to the first step's, multiple for the latents, multiple for the
            prediction), levels falling; between them it is linear, beyond them constant. Empty: as above.

    Raises:
        ValueError: the response is below 0 or not finite, or the profile's levels do not fall.
    """

    response: float = 12.0
    profile: tuple[tuple[float, float, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.response < float("inf"):
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
        if not answer:
            return gap.way, None
        squared = _dot(gap.way, gap.way).clamp_min(1e-20)
        error = gap.way / (1 - answer * _dot(gap.change(gap.way), gap.way) / squared).clamp_min(0.5)
        return error, answer * error

    def _answer(self, gap: DrawnAgain) -> float:
        """s: how much the prediction answers to an error of its latents."""
        if gap.predicts is None or self.response == 0:
            return 0.0
        if gap.predicts == "velocity":
            return self.response * gap.noise**2
        size = math.hypot(gap.signal, gap.noise)  # latents are of this size where others have 1
        return math.sqrt(gap.noise / size) / size

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
